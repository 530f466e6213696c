"""The manifest: Parquet, one row an image; from folders, bucket prefixes, files, or tables of URIs.

A manifest directory holds `part-*.parquet` in row order, and `_other_files.parquet`: what lay among the images and
is none. It is written as it is listed, so its size does not matter to the memory of who writes it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepfake_ray import schema
from deepfake_ray.data.digest import Digest
from deepfake_ray.data.inventory import inventory_pages, is_inventory
from deepfake_ray.data.listing import PREFIXES_AT_ONCE, Pick, files_in
from deepfake_ray.data.repeated_uris import Distinct, find_repeated, hashes_of
from deepfake_ray.data.tables import is_table, manifest_rows, table_pages
from deepfake_ray.errors import UserError
from deepfake_ray.storage import files

OTHER_FILES = "_other_files.parquet"
ROWS_PER_GROUP = 8192
ROWS_PER_FILE = 128 * ROWS_PER_GROUP


@dataclass(frozen=True)
class Manifest:
    """The images of a job, in order, and the names of the other files that lay among them.

    `table` has the schema `schema.MANIFEST`; `table["row"]` counts from 0.
    """

    table: pa.Table
    other_files: Sequence[str] = ()
    num_repeated_uris: int = 0
    """Rows that named an image again; the first row of each stayed."""

    @property
    def sha256(self) -> str:
        """Names the set of images: see `Listed.sha256`."""
        digest = Digest()
        for start in range(0, len(self.table), ROWS_PER_GROUP):
            digest.update(self.table.slice(start, ROWS_PER_GROUP))
        return digest.hexdigest()


@dataclass(frozen=True)
class Page:
    """Some rows of a manifest, whose `row` does not count yet, and the URIs of other files met with them."""

    rows: pa.Table
    other_files: Sequence[str] = ()
    num_repeated_uris: int = 0
    """Left out of it already."""


def numbered(table: pa.Table, first: int = 0) -> pa.Table:
    """The same rows of `schema.MANIFEST`, whose `row` counts from `first` on."""
    rows = pa.array(np.arange(first, first + len(table)))
    return table.set_column(0, schema.MANIFEST.field("row"), rows)


# --- listing


def pages_of(
    places: Sequence[str], *, pick: Pick | None = None, limit: int | None = None, shared_storage: bool = False
) -> Iterator[Page]:
    """The images of folders, `s3://` prefixes, single files, tables of URIs or S3 Inventories, page by page.

    Labels are not inferred from folders; a table's are kept. An image may come again, as places may overlap. A table
    in a bucket may name local paths only on `shared_storage`.

    Raises:
        UserError: no such place, one without an image, or a table without a column `uri`.
    """
    left = limit
    for place in map(files.absolute, places):
        num_images, others = 0, 0
        for page in _pages_of_place(place, pick or Pick(), limit, shared_storage):
            rows = page.rows if left is None else page.rows.slice(0, left)
            num_images, others = num_images + len(rows), others + len(page.other_files)
            yield Page(rows, page.other_files)
            if left is not None:
                left -= len(rows)
                if not left:
                    return
        if not num_images:
            raise UserError(
                f"There must be an image in {place}: found none among {others} files; images are known by their "
                "suffix (.jpg, .png ...), have none, or are what --include says."
            )


def _pages_of_place(place: str, pick: Pick, limit: int | None, shared_storage: bool) -> Iterator[Page]:
    if is_table(place) and not is_inventory(place):
        # Being in the table makes it an image, whatever its suffix is.
        pick = replace(pick, include=pick.include or ("*",))
        for rows in table_pages(place, shared_storage=shared_storage):
            yield Page(rows.filter(pa.array(pick(rows["uri"].to_pylist()), pa.bool_())))
        return
    # All of the first prefix is listed before its first image is given on: too much for a few.
    at_once = PREFIXES_AT_ONCE if limit is None else 1
    for listed in inventory_pages(place) if is_inventory(place) else files_in(place, at_once=at_once):
        chosen = np.array(pick.of_files(listed), bool)
        others = listed["uri"].filter(pa.array(~chosen)).to_pylist()
        yield Page(rows_of(listed.filter(pa.array(chosen))), others)


def rows_of(listed: pa.Table) -> pa.Table:
    """Files (`image_files.FILES`) as manifest rows."""
    return manifest_rows({name: listed[name] for name in ("uri", "num_bytes", "etag", "mtime")}, len(listed))


def manifest_from_pages(pages: Iterable[Page]) -> Manifest:
    """The manifest that some pages are, in memory; each URI once.

    Raises:
        UserError: a URI is named again with another label or split.
    """
    found = list(pages)
    table = pa.concat_tables([schema.MANIFEST.empty_table(), *(page.rows for page in found)]).combine_chunks()
    distinct = Distinct(find_repeated([hashes_of(table["uri"])]))
    table = numbered(distinct(table))
    distinct.require_agreement()
    num_repeated = distinct.num_repeated + sum(page.num_repeated_uris for page in found)
    return Manifest(table, [uri for page in found for uri in page.other_files], num_repeated)


def list_images(place: str, *, shared_storage: bool = False) -> Manifest:
    """All images of one place, in memory: see `pages_of`."""
    return manifest_from_pages(pages_of([place], shared_storage=shared_storage))


def count(table: pa.Table) -> dict[str, dict[str, int]]:
    """Images by split and label: `{"train": {"real": 5, "fake": 4}, ...}`, splits in their order."""
    pairs = Counter(zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True))
    present = [split for split in schema.SPLITS if any(pair[0] == split for pair in pairs)]
    return {split: {label: pairs[split, label] for label in schema.CLASSES} for split in present}


# --- files


@dataclass(frozen=True)
class Listed:
    """What was written."""

    num_images: int
    num_other_files: int
    sha256: str
    """Names the set of images: over row, uri, label, split, source, group and num_bytes."""
    num_repeated_uris: int = 0
    """Rows that named an image again and are not in it."""


class Writer:
    """Writes a manifest directory page by page; holds a row group, and 8 bytes a row to notice repeated URIs.

    What names an image again is left out at the end, by writing the manifest once more: only then is it known.

    A context manager; nothing that was not finished with `close` should be read.
    """

    def __init__(self, uri: str):
        self._uri = uri
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._num_rows = 0
        self._num_others = 0
        self._num_repeated = 0
        self._digest = Digest()
        self._keys: list[NDArray[np.uint64]] = []
        self._part = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._others = ExitStack()
        self._other_writer: pq.ParquetWriter | None = None

    @property
    def num_images(self) -> int:
        """Images so far."""
        return self._num_rows + self._num_pending

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With an error the files that are open are thrown away; without one `close` has closed them.
        for opened in (self._part, self._others):
            opened.__exit__(kind, error, trace)

    def add(self, page: Page) -> None:
        """Append rows; `row` is numbered here."""
        self._num_repeated += page.num_repeated_uris
        if page.other_files:
            self._add_others(page.other_files)
        if len(page.rows):
            self._pending.append(page.rows)
            self._num_pending += len(page.rows)
        while self._num_pending >= ROWS_PER_GROUP:
            self._write_group()

    def close(self) -> Listed:
        """Finish the files.

        Raises:
            UserError: a URI was named again with another label or split.
        """
        self._finish()
        suspects = find_repeated(self._keys)
        if not len(suspects):
            return Listed(self._num_rows, self._num_others, self._digest.hexdigest(), self._num_repeated)
        self._keys = []
        distinct = Distinct(suspects)
        parts = _parts(self._uri)
        # Row groups only move to the front, so that a part is replaced after all of it was read.
        with Writer(self._uri) as writer:
            for rows in read_columns(self._uri, schema.MANIFEST.names):
                writer.add(Page(distinct(rows)))
            writer._finish()
        distinct.require_agreement()
        for part in parts[-(-writer._num_rows // ROWS_PER_FILE) :]:
            files.delete(part)
        number = self._num_repeated + distinct.num_repeated
        return Listed(writer._num_rows, self._num_others, writer._digest.hexdigest(), number)

    def _finish(self) -> None:
        if self._num_pending:
            self._write_group()
        for opened in (self._part, self._others):
            opened.close()

    def _write_group(self) -> None:
        pending = pa.concat_tables(self._pending)
        group, rest = pending.slice(0, ROWS_PER_GROUP).combine_chunks(), pending.slice(ROWS_PER_GROUP)
        group = numbered(group, self._num_rows)
        self._digest.update(group)
        self._keys.append(hashes_of(group["uri"]))
        if self._num_rows % ROWS_PER_FILE == 0:
            self._part.close()
            place = files.join(self._uri, f"part-{self._num_rows // ROWS_PER_FILE:05d}.parquet")
            self._writer = _parquet_writer(self._part, place, schema.MANIFEST)
        assert self._writer is not None
        self._writer.write_table(group, row_group_size=ROWS_PER_GROUP)
        self._num_rows += len(group)
        self._pending, self._num_pending = ([rest] if len(rest) else []), len(rest)

    def _add_others(self, uris: Sequence[str]) -> None:
        table = pa.table({"uri": pa.array(uris, pa.string())})
        if self._other_writer is None:
            self._other_writer = _parquet_writer(self._others, files.join(self._uri, OTHER_FILES), table.schema)
        self._other_writer.write_table(table)
        self._num_others += len(uris)


def _parquet_writer(opened: ExitStack, place: str, columns: pa.Schema) -> pq.ParquetWriter:
    """A writer of a file that appears when `opened` is closed without an error."""
    path = opened.enter_context(files.new_file(place))
    return opened.enter_context(pq.ParquetWriter(path, columns, compression="zstd"))


def write(manifest: Manifest, uri: str) -> Listed:
    """Write a manifest directory."""
    with Writer(uri) as writer:
        writer.add(Page(manifest.table, manifest.other_files, manifest.num_repeated_uris))
        return writer.close()


def _parts(uri: str) -> list[str]:
    return [files.join(uri, name) for name in files.list_names(uri) if name.startswith("part-")]


def read_columns(uri: str, names: list[str]) -> Iterator[pa.Table]:
    """Some columns of a written manifest, a row group at a time."""
    for part in _parts(uri):
        with files.open_file(part) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns=names)


# --- chunks


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a written manifest: the unit of work and of resuming."""

    index: int
    uri: str
    """Of the file that they are in."""
    row_group: int
    offset: int
    """Of the first one in its row group."""
    num_rows: int


def chunks(uri: str, rows_per_chunk: int) -> list[Chunk]:
    """Cut a written manifest into chunks, in row order; row groups are cut for themselves."""
    found: list[Chunk] = []
    for part in _parts(uri):
        fs, path = files.filesystem(part)
        metadata = pq.read_metadata(path, filesystem=fs)
        for group in range(metadata.num_row_groups):
            num_rows = metadata.row_group(group).num_rows
            for offset in range(0, num_rows, rows_per_chunk):
                found.append(Chunk(len(found), part, group, offset, min(rows_per_chunk, num_rows - offset)))
    return found


def read_chunk(chunk: Chunk) -> pa.Table:
    """The manifest rows of one chunk."""
    return _read_group(chunk.uri, chunk.row_group).slice(chunk.offset, chunk.num_rows)


@lru_cache(maxsize=1)
def _read_group(uri: str, row_group: int) -> pa.Table:
    """A reader works through the chunks of one row group, more or less."""
    with files.open_file(uri) as file:
        return pq.ParquetFile(file).read_row_group(row_group)
