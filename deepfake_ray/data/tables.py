"""Tables that name images: Parquet, CSV or text with a URI a row; page by page."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from deepfake_ray import schema
from deepfake_ray.console import say
from deepfake_ray.data import folder_names, text_tables
from deepfake_ray.data.image_files import ROWS_PER_PAGE
from deepfake_ray.data.inventory import is_inventory
from deepfake_ray.errors import UserError
from deepfake_ray.storage import files
from deepfake_ray.storage.errors import first_line
from deepfake_ray.storage.uris import normalise_uris, refuse_unread

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".txt")


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


def table_pages(place: str, *, shared_storage: bool = False) -> Iterator[pa.Table]:
    """Pages of `schema.MANIFEST` from a Parquet (file or directory), CSV or text file; see `manifest_rows`.

    A Parquet or CSV has a column `uri` and any others of the manifest's; a text file has a URI a line. A relative URI
    is relative to the table. Blanks around labels, splits, sources and groups do not count.

    Args:
        place: of the table.
        shared_storage: a table in a bucket may name local paths, too.

    Raises:
        UserError: no such table, or its columns or URIs are not what they must be.
    """
    digits: set[str] = set()
    for table in _pages(place):
        _require_uris(table, place)
        try:
            columns, numbers = _columns(table, place, shared_storage=shared_storage)
            yield manifest_rows(columns, len(table))
        except pa.ArrowException as error:
            raise UserError(f"The columns of {place} must be a manifest's: {first_line(error)}; mend it.") from error
        digits |= numbers
    if digits:
        say(f"labels in {place}: {', '.join(sorted(digits))}")


def _columns(table: pa.Table, place: str, *, shared_storage: bool) -> tuple[dict[str, Any], set[str]]:
    """The manifest's columns, and how labels that are numbers were read."""
    uris = table["uri"].cast(pa.string())
    refuse_unread(uris, place, local=shared_storage or files.is_local(place))
    columns: dict[str, Any] = {"uri": normalise_uris(uris, place.rsplit("/", 1)[0])}
    digits: set[str] = set()
    for name in set(schema.MANIFEST.names) & set(table.column_names) - {"uri", "row"}:
        columns[name] = _stripped(table[name]) if name in _TEXTS else table[name]
    for name, named in (("label", _label_named), ("split", folder_names.split_named)):
        if name in columns:
            meanings = {value: named(value) for value in pc.unique(columns[name]).to_pylist() if value is not None}
            _require_known(meanings, name, place)
            digits |= {f"{value} = {meaning}" for value, meaning in meanings.items() if value in _DIGITS}
            columns[name] = [meanings.get(value) for value in columns[name].to_pylist()]
    return columns, digits


_TEXTS = ("label", "split", "source", "group")
_DIGITS = {"0": "real", "1": "fake", "0.0": "real", "1.0": "fake"}
"""As the classes are numbered here; other programs may number them by the alphabet, so that it is said."""


def _pages(place: str) -> Iterator[pa.Table]:
    if not files.exists(place):
        raise UserError(f"The table must be there: {place} does not exist; check the path.")
    fs, path = files.filesystem(place)
    suffix = os.path.splitext(place.lower())[1]
    try:
        if suffix == ".parquet":
            data = pads.dataset(path, filesystem=fs, format="parquet")
            names = {name.strip().lower(): name for name in data.schema.names}
            names = {name: written for name, written in names.items() if name in schema.MANIFEST.names}
            if "uri" not in names:
                yield data.schema.empty_table()
            readahead = {"batch_readahead": 1, "fragment_readahead": 1}
            for batch in data.to_batches(columns=list(names.values()), batch_size=ROWS_PER_PAGE, **readahead):
                yield pa.Table.from_batches([batch]).rename_columns(list(names))
            return
        with fs.open_input_stream(path) as stream:
            beginning = stream.read(text_tables.LOOK)
        with fs.open_input_stream(path) as stream:
            if suffix == ".txt":
                yield from text_tables.lines(stream, beginning, ROWS_PER_PAGE)
            else:
                yield from text_tables.separated(stream, beginning, place)
    except (pa.ArrowException, UnicodeError) as error:
        message = first_line(error)
        raise UserError(f"{place} must be a Parquet, CSV or text table: {message}; check the file.") from error


def _require_uris(table: pa.Table, place: str) -> None:
    """Refuse a table without a column uri of text; one that holds the images themselves gets advice that works."""
    names = table.column_names
    if "uri" in names and (pa.types.is_string(table["uri"].type) or pa.types.is_large_string(table["uri"].type)):
        return
    of_images = [name for name in names if _holds_images(table.schema.field(name))]
    if not of_images:
        raise UserError(
            f"A table of images must have a column uri: {place} has "
            f"{', '.join(f'{field.name} ({field.type})' for field in table.schema)}; rename one that is text."
        )
    column = json.dumps(of_images[0])
    data = f'r[{column}]["bytes"]' if pa.types.is_struct(table.schema.field(of_images[0]).type) else f"r[{column}]"
    label = next((name for name in names if name.lower() in ("label", "labels")), None)
    head, value = (', "label"', f", r[{json.dumps(label)}]") if label else ("", "")
    script = (
        f"import csv, pathlib, pyarrow.parquet as pq; rows = pq.read_table({json.dumps(place)}).to_pylist(); "
        f'pathlib.Path("images").mkdir(); [pathlib.Path(f"images/{{i}}").write_bytes({data}) '
        f'for i, r in enumerate(rows)]; csv.writer(open("images.csv", "w")).writerows([("uri"{head}), '
        f'*((f"images/{{i}}"{value}) for i, r in enumerate(rows))])'
    )
    raise UserError(
        f"A table must name the places of images: {place} holds the images themselves (column {column}, as Hugging "
        "Face data sets have them). Write them to files, and give the table images.csv that this makes (of labels, 0 "
        f"is read as real and 1 as fake: change them where the data set has it otherwise):\n"
        f"  python -c {shlex.quote(script)}"
    )


def _holds_images(field: pa.Field) -> bool:
    if pa.types.is_struct(field.type):
        return bool(field.type.get_field_index("bytes") >= 0)
    is_named = any(word in field.name.lower() for word in ("image", "img", "bytes", "jpg", "png"))
    return is_named and (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))


def _stripped(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """As text, without blanks around it; null where nothing is left."""
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _label_named(value: str) -> str | None:
    return _DIGITS.get(value) or folder_names.label_named(value)


def _require_known(meanings: Mapping[str, str | None], column: str, place: str) -> None:
    known = {"split": schema.SPLIT_NAMES, "label": [*schema.REAL_NAMES, *schema.FAKE_NAMES, "0", "1"]}[column]
    for value, meaning in meanings.items():
        if meaning is None:
            raise UserError(f"{column} must be one of {', '.join(sorted(known))}: {place} has {value!r}; rename it.")
