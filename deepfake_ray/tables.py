"""Tables that name images: Parquet, CSV or text with a URI a row, and S3 Inventories; page by page."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from deepfake_ray import schema, storage
from deepfake_ray.errors import UserError
from deepfake_ray.files import FILES, ROWS_PER_PAGE, is_left_out

TABLE_SUFFIXES = (".parquet", ".csv", ".txt")
INVENTORY = "manifest.json"


def is_inventory(place: str) -> bool:
    """Whether the name is that of an S3 Inventory."""
    return place.rsplit("/", 1)[-1] == INVENTORY


def is_table(place: str) -> bool:
    """Whether the name is that of a table of URIs or of an S3 Inventory."""
    return place.lower().endswith(TABLE_SUFFIXES) or is_inventory(place)


def manifest_rows(columns: Mapping[str, Any], num_rows: int) -> pa.Table:
    """Rows of `schema.MANIFEST` from some of its columns; the others are null, and `row` does not count yet."""
    arrays = []
    for field in schema.MANIFEST:
        if field.name in columns:
            values = columns[field.name]
            arrow = isinstance(values, (pa.Array, pa.ChunkedArray))
            arrays.append(values.cast(field.type) if arrow else pa.array(values, field.type))
        elif field.name == "row":
            arrays.append(pa.array(np.zeros(num_rows, np.int64)))
        else:
            arrays.append(pa.nulls(num_rows, field.type))
    return pa.table(arrays, schema=schema.MANIFEST)


# --- a URI a row


def table_pages(place: str) -> Iterator[pa.Table]:
    """Pages of `schema.MANIFEST` from a Parquet (file or directory), CSV or text file; see `manifest_rows`.

    A Parquet or CSV has a column `uri` and any others of the manifest's; a text file has a URI a line. A relative URI
    is relative to the table.

    Raises:
        UserError: no such table, or its columns are not what they must be.
    """
    folder = place.rsplit("/", 1)[0]
    for table in _pages(place):
        if "uri" not in table.column_names:
            raise UserError(
                f"A table of images must have a column uri: {place} has {', '.join(table.column_names)}; rename one."
            )
        columns: dict[str, Any] = {"uri": [_absolute_in(folder, uri) for uri in table["uri"].to_pylist()]}
        for name in set(schema.MANIFEST.names) & set(table.column_names) - {"uri", "row"}:
            columns[name] = table[name]
        for name in {"label", "split"} & set(columns):
            values = [None if value is None else str(value) for value in table[name].to_pylist()]
            columns[name] = _known(values, name, place)
        try:
            yield manifest_rows(columns, len(table))
        except pa.ArrowException as error:
            raise UserError(
                f"The columns of {place} must be a manifest's: {storage.first_line(error)}; mend it."
            ) from error


def _pages(place: str) -> Iterator[pa.Table]:
    if not storage.exists(place):
        raise UserError(f"The table must be there: {place} does not exist; check the path.")
    fs, path = storage.filesystem(place)
    try:
        if place.lower().endswith(".txt"):
            with fs.open_input_stream(path) as stream:
                lines = (line.rstrip("\r\n") for line in io.TextIOWrapper(stream, "utf-8", newline="\n"))
                uris = (line for line in lines if line)
                while page := list(islice(uris, ROWS_PER_PAGE)):
                    yield pa.table({"uri": page})
        elif place.lower().endswith(".csv"):
            # Types are given: from the first block alone they would be guessed differently than from the whole.
            types = {field.name: field.type for field in schema.MANIFEST if field.name not in ("row", "mtime")}
            options = pacsv.ConvertOptions(strings_can_be_null=True, column_types=types)
            with fs.open_input_stream(path) as stream:
                for batch in pacsv.open_csv(stream, convert_options=options):
                    yield pa.Table.from_batches([batch])
        else:
            data = pads.dataset(path, filesystem=fs, format="parquet")
            names = [name for name in data.schema.names if name in schema.MANIFEST.names]
            if "uri" not in names:
                yield data.schema.empty_table()
            readahead = {"batch_readahead": 1, "fragment_readahead": 1}
            for batch in data.to_batches(columns=names, batch_size=ROWS_PER_PAGE, **readahead):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, UnicodeDecodeError) as error:
        message = storage.first_line(error)
        raise UserError(f"{place} must be a Parquet, CSV or text table: {message}; check the file.") from error


def _absolute_in(folder: str, uri: str | None) -> str:
    if not uri:
        raise UserError(f"A table of images must name a uri in each row: one in {folder} is empty; remove it.")
    if storage.scheme_of(uri) or uri.startswith("/"):
        return storage.absolute(uri) if storage.is_local(uri) else uri
    return storage.join(folder, uri)


def _known(values: Sequence[str | None], column: str, place: str) -> list[str | None]:
    known: dict[str, str] = dict(schema.SPLIT_NAMES)
    if column == "label":
        known = dict.fromkeys((*schema.REAL_NAMES, "0"), "real") | dict.fromkeys((*schema.FAKE_NAMES, "1"), "fake")
    for value in values:
        if value is not None and value.lower() not in known:
            raise UserError(f"{column} must be one of {', '.join(sorted(known))}: {place} has {value!r}; rename it.")
    return [None if value is None else known[value.lower()] for value in values]


# --- S3 Inventory


def inventory_pages(place: str) -> Iterator[pa.Table]:
    """Pages of `listing.FILES` from an S3 Inventory in Parquet or CSV; current versions only.

    The format is that of the Amazon S3 user guide, "Amazon S3 Inventory lists".

    Args:
        place: of its `manifest.json`. The files that it names are looked for in the bucket where it lies, or, of a
            local copy, in the folders above it.

    Raises:
        UserError: not there, or no such inventory.
    """
    try:
        content = storage.read_json(place)
        bucket, kind = f"s3://{content['sourceBucket']}", content["fileFormat"].lower()
        names = [name.strip().lower() for name in content["fileSchema"].split(",")] if kind == "csv" else []
        keys = [file["key"] for file in content["files"]]
    except FileNotFoundError as error:
        raise UserError(f"The inventory must be there: {place} does not exist; check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place} must be the manifest of an S3 Inventory: {error!r} is amiss; check it.") from error
    readers: dict[str, Callable[[str], Iterator[pa.Table]]] = {
        "csv": lambda part: _inventory_csv(part, names),
        "parquet": _inventory_parquet,
    }
    if kind not in readers:
        raise UserError(f"An inventory must be in Parquet or CSV: {place} is in {kind}; configure another.")
    for part in (_part_of_inventory(place, key) for key in keys):
        try:
            for table in readers[kind](part):
                yield _inventory_files(table, bucket)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"The inventory's {part} must be readable: {storage.first_line(error)}.") from error


def _part_of_inventory(place: str, key: str) -> str:
    if not storage.is_local(place):
        return storage.join(storage.split_uri(place)[0], key)
    folder = os.path.dirname(place)
    while not os.path.exists(os.path.join(folder, key)):
        if folder == os.path.dirname(folder):
            raise UserError(f"The inventory's files must be there: {key} is in no folder above {place}; copy them.")
        folder = os.path.dirname(folder)
    return os.path.join(folder, key)


_INVENTORY_COLUMNS = {
    "key": "key",
    "size": "size",
    "etag": "e_tag",
    "lastmodifieddate": "last_modified_date",
    "islatest": "is_latest",
    "isdeletemarker": "is_delete_marker",
}
"""Names in a CSV's fileSchema, in lower case, and in Parquet."""


def _inventory_csv(part: str, names: Sequence[str]) -> Iterator[pa.Table]:
    columns = [_INVENTORY_COLUMNS.get(name, name) for name in names]
    fs, path = storage.filesystem(part)
    with fs.open_input_stream(path) as stream:  # gunzips by the suffix
        read = pacsv.ReadOptions(column_names=columns)
        convert = pacsv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
        for batch in pacsv.open_csv(stream, read_options=read, convert_options=convert):
            table = pa.Table.from_batches([batch])
            key = pa.array([unquote_plus(key) for key in table["key"].to_pylist()])  # only a CSV's are encoded
            yield table.set_column(table.column_names.index("key"), "key", key)


def _inventory_parquet(part: str) -> Iterator[pa.Table]:
    with storage.open_file(part) as file:
        parquet = pq.ParquetFile(file)  # less eager than a dataset, whose memory is that of whole row groups
        columns = [name for name in parquet.schema_arrow.names if name in _INVENTORY_COLUMNS.values()]
        for batch in parquet.iter_batches(columns=columns, batch_size=ROWS_PER_PAGE):
            yield pa.Table.from_batches([batch])


def _inventory_files(table: pa.Table, bucket: str) -> pa.Table:
    """Rows of an inventory as `FILES`, without old versions, deleted objects and empty objects that mean folders."""
    kept = np.array([not key.endswith("/") and not is_left_out(key) for key in table["key"].to_pylist()], bool)
    for name, wanted in (("is_latest", "true"), ("is_delete_marker", "false")):
        if name in table.column_names:
            kept &= np.array([str(value).lower() in (wanted, "none") for value in table[name].to_pylist()], bool)
    table = table.filter(pa.array(kept))
    keys = table["key"].to_pylist()
    columns = {"relative": keys, "uri": [f"{bucket}/{key}" for key in keys]}
    for name, of in (("num_bytes", "size"), ("etag", "e_tag"), ("mtime", "last_modified_date")):
        present = of in table.column_names
        columns[name] = (
            table[of].cast(FILES.field(name).type) if present else pa.nulls(len(keys), FILES.field(name).type)
        )
    return pa.table([columns[field.name] for field in FILES], schema=FILES)
