"""Where the rows of a scoring run are: files of chunks, which become the files of `predictions/`."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from deepfake_ray import schema
from deepfake_ray.cluster.session import avoid_head, cause_of
from deepfake_ray.data.manifest import Chunk
from deepfake_ray.errors import OF_THE_STORAGE, JobError
from deepfake_ray.scoring.spec import chunk_file
from deepfake_ray.storage import files

CHUNKS = "chunks"
ROWS_PER_PART = 1_000_000
"""A file of some 100 MB: query engines like few large ones."""
ROWS_PER_GROUP = 65_536
FILES_AT_ONCE = 16
"""That are looked into for missing images, each a request or two."""


class Tasks(Protocol):
    """Where the parts are written."""

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have it called; again, should that fail."""

    def wait(self) -> None:
        """Until all are done.

        Raises:
            JobError: one cannot be.
        """


class RayTasks:
    """Tasks of Ray, beside the scoring."""

    def __init__(self) -> None:
        self._running: list[ray.ObjectRef] = []

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have it called; again, should that fail."""
        # No CPUs: the scorers hold them all.
        task = ray.remote(num_cpus=0, max_retries=3, retry_exceptions=True)(function)
        self._running.append(task.options(label_selector=avoid_head()).remote(*arguments))

    def wait(self) -> None:
        """Until all are done.

        Raises:
            JobError: one cannot be.
        """
        try:
            ray.get(self._running)
        except ray.exceptions.RayError as error:
            raise JobError(
                f"a part of predictions/ cannot be written: {cause_of(error)}; mend it and --resume"
            ) from error


class Layout:
    """The files of one output.

    A part that is written already is written anew where the storage failed to give some of its images: their chunks are
    scored once more, and of what comes out the rows of these images take the place of theirs.

    Args:
        output: of the run.
        chunks: all of its manifest's.
        tasks: that write the parts.
    """

    def __init__(self, output: str, chunks: Sequence[Chunk], tasks: Tasks | None = None):
        self.predictions = files.join(output, "predictions")
        self.chunk_folder = files.join(output, CHUNKS)
        self._tasks = tasks or RayTasks()
        self._chunks = chunks
        self._parts: list[list[int]] = []
        """The chunks of each part."""
        num_rows = ROWS_PER_PART
        for chunk in chunks:
            if num_rows + chunk.num_rows > ROWS_PER_PART:
                self._parts.append([])
                num_rows = 0
            self._parts[-1].append(chunk.index)
            num_rows += chunk.num_rows
        self._part_of = {index: part for part, indices in enumerate(self._parts) for index in indices}
        self._missing = [set(indices) for indices in self._parts]
        self._is_merged = [False] * len(self._parts)

    def chunks_left(self) -> list[Chunk]:
        """What is to be scored: chunks without a file; and those in whose file, or part, images are missing for reasons
        of the storage, which may give them now.
        """
        for folder in (self.chunk_folder, self.predictions):
            files.delete_leftovers(folder)
        merged = set(files.list_names(self.predictions))
        names = set(files.list_names(self.chunk_folder))
        self._is_merged = [_part_name(part) in merged for part in range(len(self._parts))]
        with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
            found = threads.map(self._missing_in, range(len(self._parts)))
            self._missing = list(found)
            to_look_at = [
                index
                for missing in self._missing
                for index in sorted(missing)
                if chunk_file(self.chunk_folder, index).rsplit("/", 1)[-1] in names
            ]
            failed = threads.map(lambda index: _storage_failed(chunk_file(self.chunk_folder, index)), to_look_at)
            for index, has_failed in zip(to_look_at, failed, strict=True):
                if not has_failed:
                    self.written(index)
        return [chunk for chunk in self._chunks if chunk.index in self._missing[self._part_of[chunk.index]]]

    def _missing_in(self, part: int) -> set[int]:
        """The chunks that a part waits for."""
        indices = self._parts[part]
        if not self._is_merged[part]:
            return set(indices)
        with files.open_file(self._part_file(part)) as opened:
            codes = pq.read_table(opened, columns=["error_code"])["error_code"]
        failed = np.flatnonzero(_of_the_storage(codes).to_numpy())
        ends = self._ends(part)
        if not len(codes) or len(codes) % ends[-1]:
            raise JobError(
                f"{self._part_file(part)} has {len(codes)} rows, of {ends[-1]} images; it was changed by others"
            )
        # Each row of the manifest has as many rows there as the run has degradations.
        return {indices[at] for at in np.searchsorted(ends * (len(codes) // ends[-1]), failed, side="right")}

    def _ends(self, part: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """How many rows of the manifest there are up to the end of each chunk of a part."""
        return np.array(list(accumulate(self._chunks[index].num_rows for index in self._parts[part])))

    def _part_file(self, part: int) -> str:
        return files.join(self.predictions, _part_name(part))

    def written(self, index: int) -> None:
        """Note that a chunk has its file; the last one that a part waits for sets its writing going."""
        part = self._part_of[index]
        if index not in self._missing[part]:  # scored twice: a lost node had written it
            return
        self._missing[part].remove(index)
        if not self._missing[part]:
            paths = [chunk_file(self.chunk_folder, of) for of in self._parts[part]]
            if self._is_merged[part]:
                self._tasks.start(amend, paths, self._ends(part).tolist(), self._part_file(part))
            else:
                self._tasks.start(merge, paths, self._part_file(part))

    def finish(self) -> None:
        """Wait until all parts are there, and remove what is left of the chunks.

        Raises:
            JobError: a part cannot be written.
        """
        self._tasks.wait()
        files.delete_directory(self.chunk_folder)


def _part_name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _of_the_storage(codes: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(codes, pa.array(sorted(OF_THE_STORAGE)))


def _storage_failed(file: str) -> bool:
    with files.open_file(file) as opened:
        codes = pq.read_table(opened, columns=["error_code"])["error_code"]
    return bool(pc.any(_of_the_storage(codes)).as_py())


def merge(paths: Sequence[str], part: str) -> None:
    """Write the rows of some files, in order, into one, and remove them. May be run again, however far it came."""
    if not files.exists(part):
        with files.new_file(part) as path, contextlib.ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            pending: list[pa.Table] = []
            for file in paths:
                pending.append(_rows_of(file))
                if sum(map(len, pending)) >= ROWS_PER_GROUP or file == paths[-1]:
                    rows = pa.concat_tables(pending)
                    writer = writer or stack.enter_context(pq.ParquetWriter(path, rows.schema, compression="zstd"))
                    writer.write_table(rows)
                    pending = []
    _remove(paths)


def amend(paths: Sequence[str], ends: Sequence[int], part: str) -> None:
    """Write a part anew, with the rows that its images have in some files where the storage had failed to give them;
    remove the files. May be run again, however far it came.

    All other rows stay as they are: an image that was scored keeps its score, though it may be gone by now.

    Args:
        paths: of the files of all chunks of the part; those that were not scored anew are not there.
        ends: how many rows of the manifest there are up to the end of each.
        part: the file.

    Raises:
        JobError: the files are of other images.
    """
    there = set(files.list_names(paths[0].rsplit("/", 1)[0]))
    anew = [file.rsplit("/", 1)[1] in there for file in paths]
    with files.open_file(part) as opened, files.new_file(part) as path:
        before = pq.ParquetFile(opened)
        per_row = before.metadata.num_rows // ends[-1]
        bounds = np.array([0, *ends]) * per_row
        columns = _columns_of(before.schema_arrow)
        start = 0
        with pq.ParquetWriter(path, columns, compression="zstd") as writer:
            for group in range(before.num_row_groups):
                rows = _completed(before.read_row_group(group))
                for index, (first, end) in enumerate(pairwise(bounds)):
                    if anew[index] and first < start + len(rows) and end > start:
                        rows = _amended(rows, start, _rows_of(paths[index]), int(first), paths[index])
                writer.write_table(rows)
                start += len(rows)
    _remove(paths)


def _amended(rows: pa.Table, start: int, anew: pa.Table, first: int, file: str) -> pa.Table:
    """Rows of a part from `start` on, some replaced by those of a chunk, which begins at `first` of the part."""
    low, high = max(start, first), min(start + len(rows), first + len(anew))
    old, new = rows.slice(low - start, high - low), anew.slice(low - first, high - low)
    if not old["uri"].equals(new["uri"]) or not old["row"].equals(new["row"]):
        raise JobError(f"{file} has other images than its part; it was changed by others")
    positions = np.arange(high - low) + np.where(_of_the_storage(old["error_code"]).to_numpy(), high - low, 0)
    replaced = pa.concat_tables([old, new]).take(pa.array(positions))
    return pa.concat_tables([rows.slice(0, low - start), replaced, rows.slice(high - start)]).combine_chunks()


def _columns_of(found: pa.Schema) -> pa.Schema:
    return schema.DEGRADED if "degradation" in found.names else schema.PREDICTIONS


def _rows_of(file: str) -> pa.Table:
    with files.open_file(file) as opened:
        return _completed(pq.read_table(opened))


def _completed(rows: pa.Table) -> pa.Table:
    """With null in the columns that an older version did not know."""
    columns = _columns_of(rows.schema)
    for field in columns:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select(columns.names).cast(columns)


def _remove(paths: Sequence[str]) -> None:
    for file in paths:
        with contextlib.suppress(FileNotFoundError):
            files.delete(file)
