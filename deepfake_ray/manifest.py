"""The manifest: Parquet, one row an image; from a folder, a bucket prefix, one file, or a table of URIs.

A manifest directory holds `part-*.parquet` in row order, cut into row groups (the chunks that scoring works
through), and `_other_files.parquet`: what lay among the images and is none.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from deepfake_ray import schema, storage
from deepfake_ray.errors import UserError
from deepfake_ray.listing import File, images_in

REAL_NAMES = frozenset({"real", "0_real", "authentic", "original"})
FAKE_NAMES = frozenset({"fake", "1_fake", "ai", "synthetic", "generated"})
SPLIT_NAMES = {
    "train": schema.TRAIN,
    "valid": schema.VALIDATION,
    "val": schema.VALIDATION,
    "validation": schema.VALIDATION,
    "test": schema.TEST,
}
TABLE_SUFFIXES = (".parquet", ".csv")
OTHER_FILES = "_other_files.parquet"


@dataclass(frozen=True)
class Manifest:
    """The images of a job, in order, and the names of the other files that lay among them.

    `table` has the schema `schema.MANIFEST`; `table["row"]` counts from 0.
    """

    table: pa.Table
    other_files: Sequence[str] = ()

    @property
    def sha256(self) -> str:
        """Names the set of images: a hash over row, uri, label, split, source, group and num_bytes."""
        digest = hashlib.sha256()
        columns = self.table.select(["row", "uri", "label", "split", "source", "group", "num_bytes"])
        with pa.ipc.new_stream(pa.PythonFile(_HashWriter(digest), mode="w"), columns.schema) as writer:
            writer.write_table(columns.combine_chunks(), max_chunksize=1 << 16)
        return digest.hexdigest()


class _HashWriter:
    closed = False

    def __init__(self, digest: "hashlib._Hash") -> None:
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def list_images(place: str, *, limit: int | None = None) -> Manifest:
    """The images of a folder, an `s3://` prefix, one file, or a Parquet/CSV of URIs, without labels inferred.

    Raises:
        UserError: no such place, no image in it, or a table without a column `uri`.
    """
    place = storage.absolute(place)
    if place.lower().endswith(TABLE_SUFFIXES):
        return from_table(place, limit)
    files, others = images_in(place, limit)
    return Manifest(table_of(files), others)


def table_of(files: Sequence[File], **columns: list[str | None]) -> pa.Table:
    """Files as manifest rows, with label, split, source and group where given."""
    empty: list[str | None] = [None] * len(files)
    return pa.table(
        {
            "row": np.arange(len(files)),
            "uri": [file.uri for file in files],
            "label": columns.get("label", empty),
            "split": columns.get("split", empty),
            "source": columns.get("source", empty),
            "group": columns.get("group", empty),
            "num_bytes": [file.num_bytes for file in files],
            "etag": [file.etag for file in files],
            "mtime": [file.mtime for file in files],
        },
        schema=schema.MANIFEST,
    )


# --- tables of URIs


def read_table(place: str) -> pa.Table:
    """A Parquet (file or directory) or CSV as an Arrow table.

    Raises:
        UserError: it is not there, or is no such table.
    """
    place = storage.absolute(place)
    if not storage.exists(place):
        raise UserError(f"The table must be there: {place} does not exist; check the path.")
    fs, path = storage.filesystem(place)
    try:
        if place.lower().endswith(".csv"):
            with fs.open_input_stream(path) as stream:
                return pacsv.read_csv(stream, convert_options=pacsv.ConvertOptions(strings_can_be_null=True))
        return pq.read_table(path, filesystem=fs)
    except pa.ArrowException as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{place} must be a Parquet or CSV table: {message}; check the file.") from error


def from_table(place: str, limit: int | None) -> Manifest:
    """The manifest that a Parquet or CSV with a column `uri` is; a relative uri is relative to the table.

    Raises:
        UserError: no such table, or its columns are not what they must be.
    """
    table = read_table(place)
    if "uri" not in table.column_names:
        raise UserError(
            f"A table of images must have a column uri: {place} has {', '.join(table.column_names)}; rename one."
        )
    if limit is not None:
        table = table.slice(0, limit)
    if not len(table):
        raise UserError(f"There must be an image in {place}: the table has no rows; check how it was made.")
    folder = place.rsplit("/", 1)[0]
    uris = [_absolute_in(folder, uri) for uri in table["uri"].to_pylist()]
    repeated = [uri for uri, count in Counter(uris).items() if count > 1]
    if repeated:
        raise UserError(f"A table must name each uri once: {place} repeats {repeated[0]}; remove the repetitions.")
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "row": pa.array(np.arange(len(uris))),
        "uri": pa.array(uris),
    }
    for field in schema.MANIFEST:
        if field.name in columns:
            continue
        if field.name not in table.column_names:
            columns[field.name] = pa.nulls(len(uris), field.type)
        elif field.name in ("label", "split"):
            values = [None if value is None else str(value) for value in table[field.name].to_pylist()]
            columns[field.name] = pa.array(_known(values, field.name, place), pa.string())
        else:
            columns[field.name] = table[field.name].cast(field.type)
    return Manifest(pa.table(columns, schema=schema.MANIFEST))


def _absolute_in(folder: str, uri: str | None) -> str:
    if not uri:
        raise UserError(f"A table of images must name a uri in each row: one in {folder} is empty; remove it.")
    if storage.scheme_of(uri) or uri.startswith("/"):
        return storage.absolute(uri) if storage.is_local(uri) else uri
    return storage.join(folder, uri)


def _known(values: list[str | None], column: str, place: str) -> list[str | None]:
    known: dict[str, str] = dict(SPLIT_NAMES)
    if column == "label":
        known = dict.fromkeys((*REAL_NAMES, "0"), "real") | dict.fromkeys((*FAKE_NAMES, "1"), "fake")
    for value in values:
        if value is not None and value.lower() not in known:
            raise UserError(f"{column} must be one of {', '.join(sorted(known))}: {place} has {value!r}; rename it.")
    return [None if value is None else known[value.lower()] for value in values]


def count(table: pa.Table) -> dict[str, dict[str, int]]:
    """Images by split and label: `{"train": {"real": 5, "fake": 4}, ...}`, splits in their order."""
    pairs = Counter(zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True))
    present = [split for split in schema.SPLITS if any(pair[0] == split for pair in pairs)]
    return {split: {label: pairs[split, label] for label in schema.CLASSES} for split in present}


# --- files

ROWS_PER_FILE = 1_000_000


def write(manifest: Manifest, uri: str, *, rows_per_chunk: int = 8192) -> None:
    """Write a manifest directory; each row group holds `rows_per_chunk` rows (the last one the rest)."""
    rows_per_file = max(1, ROWS_PER_FILE // rows_per_chunk) * rows_per_chunk
    if manifest.other_files:
        others = pa.table({"uri": pa.array(manifest.other_files, pa.string())})
        _write_parquet(others, storage.join(uri, OTHER_FILES), len(others))
    for index, start in enumerate(range(0, len(manifest.table), rows_per_file)):
        part = manifest.table.slice(start, rows_per_file)
        _write_parquet(part, storage.join(uri, f"part-{index:05d}.parquet"), rows_per_chunk)


def _write_parquet(table: pa.Table, uri: str, rows_per_group: int) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=rows_per_group)
    storage.write_bytes(uri, sink.getvalue())


@dataclass(frozen=True)
class Chunk:
    """A row group of a written manifest: the unit of work and of resuming."""

    index: int
    uri: str
    row_group: int
    num_rows: int


def chunks(uri: str) -> list[Chunk]:
    """The chunks of a written manifest, in row order."""
    found: list[Chunk] = []
    for name in storage.list_names(uri):
        if not name.startswith("part-"):
            continue
        fs, path = storage.filesystem(storage.join(uri, name))
        metadata = pq.read_metadata(path, filesystem=fs)
        for group in range(metadata.num_row_groups):
            num_rows = metadata.row_group(group).num_rows
            found.append(Chunk(len(found), storage.join(uri, name), group, num_rows))
    return found


def read_chunk(chunk: Chunk) -> pa.Table:
    """The manifest rows of one chunk."""
    fs, path = storage.filesystem(chunk.uri)
    with fs.open_input_file(path) as file:
        return pq.ParquetFile(file).read_row_group(chunk.row_group)
