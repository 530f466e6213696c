"""Tables of text as people's programs write them: CSV with any usual separator and encoding, or a URI a line."""

import codecs
import csv
import io
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from deepfake_ray import schema
from deepfake_ray.errors import UserError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
LOOK = 1 << 16
"""Bytes of the beginning that say how the rest is written."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(beginning: bytes) -> str:
    """What a text begins like: by its byte order mark, else by where its zeros are; else UTF-8."""
    for mark, name in _MARKS:
        if beginning.startswith(mark):
            return name
    if b"\0" in beginning[:2]:
        return "utf-16-be" if beginning[0] == 0 else "utf-16-le"
    return "utf-8"


def lines(stream: IO[bytes], beginning: bytes, rows_per_page: int) -> Iterator[pa.Table]:
    """Pages with a column uri, a line each; empty lines are passed over."""
    text = io.TextIOWrapper(stream, encoding_of(beginning), newline="\n")
    uris = (line for line in (line.rstrip("\r\n") for line in text) if line)
    while page := list(islice(uris, rows_per_page)):
        yield pa.table({"uri": page})


def separated(stream: pa.NativeFile, beginning: bytes, place: str) -> Iterator[pa.Table]:
    """Pages of a CSV: those columns that a manifest has. Blanks around names and values, and the names' case, do not
    count.

    Raises:
        UserError: none of its columns is called uri, or one is there twice.
    """
    encoding = encoding_of(beginning)
    header, num_lines = _header(beginning, encoding, place)
    separator, names = _columns(header, place)
    wanted = [name for name in schema.MANIFEST.names if name in names and name != "row"]
    for name in wanted:
        if names.count(name) > 1:
            raise UserError(f"A table's columns must have different names: {place} has {name} twice; rename one.")
    # Types are given: from the first block alone they would be guessed differently than from the whole.
    types = {name: schema.MANIFEST.field(name).type for name in wanted if name != "mtime"}
    has_blanks = f"{separator} " in header or f" {separator}" in header  # then values have them, too
    batches = pacsv.open_csv(
        stream,
        read_options=pacsv.ReadOptions(
            column_names=_distinct(names),
            skip_rows=num_lines,
            encoding="utf-8" if encoding == "utf-8-sig" else encoding,
        ),
        parse_options=pacsv.ParseOptions(delimiter=separator),
        convert_options=pacsv.ConvertOptions(strings_can_be_null=True, column_types=types, include_columns=wanted),
    )
    for batch in batches:
        table = pa.Table.from_batches([batch])
        yield _set(table, "uri", pc.utf8_trim_whitespace(table["uri"])) if has_blanks else table


def _header(beginning: bytes, encoding: str, place: str) -> tuple[str, int]:
    """The first line that is not empty, and the number of lines up to its end."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        text = decoder.decode(beginning)
    except UnicodeDecodeError as error:
        raise UserError(
            f"A table must be in UTF-8 or UTF-16: {place} is not ({error.reason} at byte {error.start}); save it as "
            "UTF-8."
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            return line, number
    raise UserError(f"A table must have a header: {place} is empty; its columns are uri, label ...")


def _columns(header: str, place: str) -> tuple[str, list[str]]:
    """The separator that yields a column uri, and the names in lower case, without blanks around them."""
    found = {
        separator: [name.strip().lower() for name in next(csv.reader([header], delimiter=separator))]
        for separator in SEPARATORS
    }
    for separator, names in found.items():
        if "uri" in names:
            return separator, names
    separator = max(found, key=lambda one: len(found[one]))
    raise UserError(
        f"A table of images must have a column uri: {place} has {', '.join(found[separator])} (read with "
        f"{SEPARATORS[separator]}s between them); rename one, or put a header uri,label first."
    )


def _distinct(names: list[str]) -> list[str]:
    """Columns that are not read may share a name."""
    return [name if names.index(name) == i else f"{name} {i}" for i, name in enumerate(names)]


def _set(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
