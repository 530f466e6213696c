"""Where the rows of a scoring run are: files of chunks, which become the files of `predictions/`."""

import contextlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from deepfake_ray import storage
from deepfake_ray.errors import OF_THE_STORAGE, JobError
from deepfake_ray.manifest import Chunk
from deepfake_ray.scorer import chunk_file
from deepfake_ray.session import cause_of, off_the_head

CHUNKS = "chunks"
ROWS_PER_PART = 1_000_000
"""A file of some 100 MB: query engines like few large ones."""
ROWS_PER_GROUP = 65_536


class Layout:
    """The files of one output.

    Args:
        output: of the run.
        chunks: all of its manifest's.
    """

    def __init__(self, output: str, chunks: Sequence[Chunk]):
        self.predictions = storage.join(output, "predictions")
        self.chunk_folder = storage.join(output, CHUNKS)
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
        self._merging: list[ray.ObjectRef] = []

    def chunks_left(self) -> list[Chunk]:
        """What is to be scored: chunks without a file; and those in whose file images are missing for reasons of the
        storage, which may give them now.
        """
        for folder in (self.chunk_folder, self.predictions):
            storage.delete_leftovers(folder)
        merged = set(storage.list_names(self.predictions))
        files = set(storage.list_names(self.chunk_folder))
        for part, indices in enumerate(self._parts):
            if _part_name(part) in merged:
                self._missing[part] = set()
                continue
            for index in indices:
                file = chunk_file(self.chunk_folder, index)
                if file.rsplit("/", 1)[-1] in files and not _storage_failed(file):
                    self.written(index)
        return [chunk for chunk in self._chunks if chunk.index in self._missing[self._part_of[chunk.index]]]

    def written(self, index: int) -> None:
        """Note that a chunk has its file; the last one of a part sets its merging going."""
        part = self._part_of[index]
        self._missing[part].discard(index)
        if not self._missing[part]:
            files = [chunk_file(self.chunk_folder, of) for of in self._parts[part]]
            # No CPUs: the scorers hold them all.
            task = _merge.options(num_cpus=0, label_selector=off_the_head())
            self._merging.append(task.remote(files, storage.join(self.predictions, _part_name(part))))

    def finish(self) -> None:
        """Wait until all parts are there, and remove what is left of the chunks.

        Raises:
            JobError: a part cannot be written.
        """
        try:
            ray.get(self._merging)
        except ray.exceptions.RayError as error:
            raise JobError(
                f"a part of predictions/ cannot be written: {cause_of(error)}; mend it and --resume"
            ) from error
        storage.delete_directory(self.chunk_folder)


def _part_name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _storage_failed(file: str) -> bool:
    with storage.open_file(file) as opened:
        codes = pq.read_table(opened, columns=["error_code"])["error_code"]
    return bool(pc.any(pc.is_in(codes, pa.array(sorted(OF_THE_STORAGE)))).as_py())


@ray.remote(max_retries=3, retry_exceptions=True)
def _merge(files: Sequence[str], part: str) -> None:
    """Write the rows of some files, in order, into one, and remove them. May be run again, however far it came."""
    if not storage.exists(part):
        with storage.open_file(files[0]) as opened:
            columns = pq.read_schema(opened)
        with storage.new_file(part) as path, pq.ParquetWriter(path, columns, compression="zstd") as writer:
            pending: list[pa.Table] = []
            for file in files:
                with storage.open_file(file) as opened:
                    pending.append(pq.read_table(opened))
                if sum(map(len, pending)) >= ROWS_PER_GROUP:
                    writer.write_table(pa.concat_tables(pending))
                    pending = []
            if pending:
                writer.write_table(pa.concat_tables(pending))
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            storage.delete(file)
