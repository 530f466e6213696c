"""S3 Inventories: Amazon's own listings of a bucket, read in place of listing it."""

import os
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from deepfake_ray.data.image_files import FILES, ROWS_PER_PAGE, is_left_out
from deepfake_ray.errors import UserError
from deepfake_ray.storage import files
from deepfake_ray.storage.errors import first_line

INVENTORY = "manifest.json"


def is_inventory(place: str) -> bool:
    """Whether the name is that of an S3 Inventory."""
    return place.rsplit("/", 1)[-1] == INVENTORY


def inventory_pages(place: str) -> Iterator[pa.Table]:
    """Pages of `image_files.FILES` from an S3 Inventory in Parquet or CSV; current versions only.

    The format is that of the Amazon S3 user guide, "Amazon S3 Inventory lists".

    Args:
        place: of its `manifest.json`. The files that it names are looked for in the bucket where it lies, or, of a
            local copy, in the folders above it.

    Raises:
        UserError: not there, or no such inventory.
    """
    try:
        content = files.read_json(place)
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
            raise UserError(f"The inventory's {part} must be readable: {first_line(error)}.") from error


def _part_of_inventory(place: str, key: str) -> str:
    if not files.is_local(place):
        return files.join(files.split_uri(place)[0], key)
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
    fs, path = files.filesystem(part)
    with fs.open_input_stream(path) as stream:  # gunzips by the suffix
        read = pacsv.ReadOptions(column_names=columns)
        convert = pacsv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
        for batch in pacsv.open_csv(stream, read_options=read, convert_options=convert):
            table = pa.Table.from_batches([batch])
            key = pa.array([unquote_plus(key) for key in table["key"].to_pylist()])  # only a CSV's are encoded
            yield table.set_column(table.column_names.index("key"), "key", key)


def _inventory_parquet(part: str) -> Iterator[pa.Table]:
    with files.open_file(part) as file:
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
