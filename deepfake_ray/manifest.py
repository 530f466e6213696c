"""A folder, a bucket prefix or a table of URIs -> the manifest: Parquet, one row an image.

A manifest directory holds `part-*.parquet` in row order, cut into row groups (the chunks that scoring works
through), and `_other_files.parquet`: what lay among the images and is none.
"""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from deepfake_ray import schema, storage
from deepfake_ray.errors import UserError

log = logging.getLogger(__name__)

REAL_NAMES = frozenset({"real", "0_real", "authentic", "original"})
FAKE_NAMES = frozenset({"fake", "1_fake", "ai", "synthetic", "generated"})
SPLIT_NAMES = {
    "train": schema.TRAIN,
    "valid": schema.VALIDATION,
    "val": schema.VALIDATION,
    "validation": schema.VALIDATION,
    "test": schema.TEST,
}
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
    + (".avif", ".avifs", ".heic", ".heif", ".jp2", ".jxl", ".psd")
)
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


@dataclass(frozen=True)
class _File:
    relative: str
    uri: str
    num_bytes: int
    etag: str | None
    mtime: datetime


# --- listing


def _list_local(root: str) -> Iterator[_File]:
    """Depth first, names in order, so that the same folder always gives the same manifest."""
    stack = [""]
    while stack:
        relative = stack.pop()
        with os.scandir(os.path.join(root, relative)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        folders = []
        for entry in found:
            path = os.path.join(relative, entry.name)
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                folders.append(path)
                continue
            try:
                stat = entry.stat()
            except FileNotFoundError:  # a dangling link: it is listed, and reading it will say not_found
                stat = entry.stat(follow_symlinks=False)
            mtime = datetime.fromtimestamp(stat.st_mtime, UTC)
            yield _File(path, os.path.join(root, path), stat.st_size, None, mtime)
        stack.extend(reversed(folders))


def _list_remote(root: str) -> Iterator[_File]:
    import obstore

    from deepfake_ray.fetch import object_store

    bucket, prefix = storage.split_uri(root)
    try:
        for page in obstore.list(object_store(bucket), prefix or None):
            for found in page:
                key = found["path"]
                relative = key[len(prefix) :].lstrip("/")
                if relative and not any(_is_hidden(part) for part in relative.split("/")):
                    yield _File(relative, f"{bucket}/{key}", found["size"], found["e_tag"], found["last_modified"])
    except obstore.exceptions.BaseError as error:
        raise UserError(
            f"The images must be listable: {root} is not ({str(error).splitlines()[0][:200]}); check the bucket's "
            "name, AWS_ENDPOINT_URL and the credentials in the environment."
        ) from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _may_be_image(relative: str) -> bool:
    """By its suffix; a name without one may be anything, so the decoder will say."""
    suffix = os.path.splitext(relative)[1].lower()
    return not suffix or suffix in IMAGE_SUFFIXES


def list_images(place: str, *, limit: int | None = None) -> Manifest:
    """The images of a folder, an `s3://` prefix, one file, or a Parquet/CSV of URIs, without labels inferred.

    Raises:
        UserError: no such place, no image in it, or a table without a column `uri`.
    """
    place = storage.absolute(place)
    if place.lower().endswith(TABLE_SUFFIXES):
        return _from_table(place, limit)
    files, others = _images_in(place, limit)
    return Manifest(_table_of(files), others)


def _images_in(place: str, limit: int | None) -> tuple[list[_File], list[str]]:
    if not storage.exists(place):
        raise UserError(f"The images must be there: {place} does not exist; check the path.")
    if storage.is_local(place):
        if os.path.isfile(place):
            stat = os.stat(place)
            mtime = datetime.fromtimestamp(stat.st_mtime, UTC)
            return [_File(os.path.basename(place), place, stat.st_size, None, mtime)], []
        listing = _list_local(place)
    else:
        listing = _list_remote(place)
    images: list[_File] = []
    others: list[str] = []
    for file in listing:
        if not _may_be_image(file.relative):
            others.append(file.uri)
            continue
        images.append(file)
        if limit is not None and len(images) >= limit:
            break
    if not images:
        raise UserError(
            f"There must be an image in {place}: found none among {len(others)} files; images are known by their "
            f"suffix ({', '.join(sorted(IMAGE_SUFFIXES)[:6])} ...) or have none."
        )
    return images, others


def _table_of(files: Sequence[_File], **columns: list[str | None]) -> pa.Table:
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


def _from_table(place: str, limit: int | None) -> Manifest:
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


# --- labelled data


def read_labelled(
    data: str,
    *,
    labels: str | None = None,
    group_regex: str | None = None,
    split_by: str = "auto",
    limit: int | None = None,
    seed: int = 0,
) -> Manifest:
    """The labelled images of a folder, prefix or table; every row has a label and a split.

    Args:
        data: folder or prefix like `Train|Validation|Test/Fake|Real/...` in any letter case, or a table.
        labels: a table with `uri` and any of `label, split, source, group`, which override the folders'.
        group_regex: searched in the file name; its first group becomes `group`.
        split_by: `auto` makes the splits that are missing, by hash of the group or else of the place in `data`;
            `folder` demands that they are there.
        limit: at most so many images of each split and label together, drawn by `seed`.
        seed: of that draw.

    Raises:
        UserError: see the messages.
    """
    data = storage.absolute(data)
    if data.lower().endswith(TABLE_SUFFIXES):
        manifest = _from_table(data, None)
        keys = manifest.table["uri"].to_pylist()
    else:
        files, others = _images_in(data, None)
        keys = [file.relative for file in files]
        parts = [_parse_folders(key) for key in keys]
        columns = {name: [part[name] for part in parts] for name in ("label", "split", "source")}
        manifest = Manifest(_table_of(files, **columns), others)
    table = manifest.table
    if labels is not None:
        table = _override(table, _from_table(storage.absolute(labels), None).table)
    if group_regex is not None:
        table = _set(table, "group", _groups(table["uri"].to_pylist(), group_regex))
    _require_labels(table, data, keys)
    table = _set(table, "split", _splits(table, keys, split_by))
    if limit is not None:
        table = _draw(table, keys, limit, seed)
    _require_classes(table, data)
    return Manifest(table, manifest.other_files)


def _set(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, schema.MANIFEST.field(name), pa.array(values, pa.string()))


def _parse_folders(relative: str) -> dict[str, str | None]:
    """The class, split and source in the folders above a file; the source is what is left of them."""
    label: str | None = None
    split: str | None = None
    source = []
    for folder in relative.split("/")[:-1]:
        name = folder.lower()
        if label is None and name in REAL_NAMES | FAKE_NAMES:
            label = schema.CLASSES[schema.FAKE if name in FAKE_NAMES else schema.REAL]
        elif split is None and name in SPLIT_NAMES:
            split = SPLIT_NAMES[name]
        else:
            source.append(folder)
    return {"label": label, "split": split, "source": "/".join(source) or None}


def _override(table: pa.Table, given: pa.Table) -> pa.Table:
    position = {uri: index for index, uri in enumerate(given["uri"].to_pylist())}
    found = [position.get(uri) for uri in table["uri"].to_pylist()]
    if not any(index is not None for index in found):
        raise UserError("labels must name images of the data: no uri is in both; give absolute paths or URIs.")
    for name in ("label", "split", "source", "group"):
        new, old = given[name].to_pylist(), table[name].to_pylist()
        both = zip(old, found, strict=True)
        table = _set(table, name, [(new[i] or value) if i is not None else value for value, i in both])
    return table


def _groups(uris: Sequence[str], group_regex: str) -> list[str | None]:
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise UserError(f"group-regex must be a regular expression: {group_regex!r}: {error}; mend it.") from error
    if not pattern.groups:
        raise UserError(f"group-regex must have a (group): got {group_regex!r}; put brackets around the name.")
    matches = [pattern.search(uri.rsplit("/", 1)[-1]) for uri in uris]
    if not any(matches):
        raise UserError(f"group-regex must match file names: {group_regex!r} matches none of {len(uris)}; mend it.")
    return [match.group(1) if match else None for match in matches]


def _require_labels(table: pa.Table, data: str, keys: Sequence[str]) -> None:
    unlabelled = np.flatnonzero(pc.is_null(table["label"]).to_numpy())
    if not len(unlabelled):
        return
    folders = Counter(os.path.dirname(keys[i]) or "." for i in unlabelled)
    found = ", ".join(f"{name} ({count})" for name, count in folders.most_common(5))
    raise UserError(
        f"Each image must lie in a class folder, or have a label: {len(unlabelled)} of {len(table)} images in {data} "
        f"do not, in the folders {found}. Known for real: {', '.join(sorted(REAL_NAMES))}; for fake: "
        f"{', '.join(sorted(FAKE_NAMES))} (any letter case). Rename the folder, or give --labels TABLE."
    )


def _bucket(key: str) -> float:
    """A number in [0, 1) that only the key decides."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _splits(table: pa.Table, keys: Sequence[str], split_by: str) -> list[str]:
    splits: list[str | None] = table["split"].to_pylist()
    groups = table["group"].to_pylist()
    buckets = [_bucket(group or key) for group, key in zip(groups, keys, strict=True)]
    present = set(splits) - {None}
    if split_by == "folder":
        if None in splits:
            raise UserError(
                f"split-by folder needs each image under one of {', '.join(sorted(SPLIT_NAMES))}: "
                f"{splits.count(None)} are not; use --split-by auto."
            )
    elif not present:
        log.info("no split folders: 80/10/10 %% by hash of the %s", "group" if any(groups) else "file's place")
        return [
            schema.TRAIN if bucket < 0.8 else schema.VALIDATION if bucket < 0.9 else schema.TEST for bucket in buckets
        ]
    elif None in splits:
        raise UserError(
            f"Either each image lies under a split folder or none does: {splits.count(None)} of {len(splits)} do "
            f"not; move them under one of {', '.join(sorted(SPLIT_NAMES))}."
        )
    elif schema.TRAIN in present and schema.VALIDATION not in present:
        log.info("no Validation folder: a tenth of Train by hash of the %s", "group" if any(groups) else "place")
        return [
            schema.VALIDATION if split == schema.TRAIN and bucket < 0.1 else str(split)
            for split, bucket in zip(splits, buckets, strict=True)
        ]
    return [str(split) for split in splits]


def _draw(table: pa.Table, keys: Sequence[str], limit: int, seed: int) -> pa.Table:
    """At most `limit` rows of each split, an even share of each label, drawn by hash; the order stays."""
    luck = np.array([_bucket(f"{seed}/{key}") for key in keys])
    splits, labels = np.array(table["split"].to_pylist()), np.array(table["label"].to_pylist())
    chosen: list[int] = []
    for split in sorted(set(splits)):
        for position, label in enumerate(schema.CLASSES):
            share = (limit + 1 - position) // 2
            rows = np.flatnonzero((splits == split) & (labels == label))
            chosen.extend(rows[np.argsort(luck[rows], kind="stable")[:share]].tolist())
    table = table.take(pa.array(sorted(chosen), pa.int64()))
    return table.set_column(0, schema.MANIFEST.field("row"), pa.array(np.arange(len(table))))


def count(table: pa.Table) -> dict[str, dict[str, int]]:
    """Images by split and label: `{"train": {"real": 5, "fake": 4}, ...}`, splits in their order."""
    pairs = Counter(zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True))
    present = [split for split in schema.SPLITS if any(pair[0] == split for pair in pairs)]
    return {split: {label: pairs[split, label] for label in schema.CLASSES} for split in present}


def _require_classes(table: pa.Table, data: str) -> None:
    counts = count(table)
    total = {label: sum(split[label] for split in counts.values()) for label in schema.CLASSES}
    for label, number in total.items():
        if not number:
            raise UserError(
                f"There must be images of both classes: {data} has {total['real']} real and {total['fake']} fake; "
                f"add a folder of {label} images."
            )
    for split, by_label in counts.items():
        for label, number in by_label.items():
            if not number:
                raise UserError(
                    f"Each split must have both classes: {split} would have no {label} image (real "
                    f"{by_label['real']}, fake {by_label['fake']}); add some, or use more images."
                )


def of_split(manifest: Manifest, split: str, data: str) -> Manifest:
    """The rows of one split, renumbered; `all` keeps every row.

    Raises:
        UserError: the split has no image.
    """
    if split == "all":
        return manifest
    table = manifest.table.filter(pc.equal(manifest.table["split"], split))
    if not len(table):
        present = ", ".join(count(manifest.table))
        raise UserError(f"The split must have images: {data} has none in {split} (it has {present}); use --split.")
    table = table.set_column(0, schema.MANIFEST.field("row"), pa.array(np.arange(len(table))))
    return Manifest(table, manifest.other_files)


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
    found = []
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
