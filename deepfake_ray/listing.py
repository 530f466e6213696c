"""What lies in a folder, under a bucket prefix, or is one file: page by page, in order, in bounded memory."""

import os
import re
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import translate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deepfake_ray import s3, storage
from deepfake_ray.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".avifs", ".heic", ".heif", ".jp2", ".jxl", ".psd"),
    }
)
ROWS_PER_PAGE = 8192
PREFIXES_AT_ONCE = 8

FILES = pa.schema(
    [
        pa.field("relative", pa.string(), nullable=False),  # the path below the place that was listed
        pa.field("uri", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
    ]
)
"""Files or objects, and what the store says of them."""


@dataclass(frozen=True)
class Pick:
    """Which files of a place are its images: by glob patterns, else by their suffix.

    `*` also stands for `/`. A name without a suffix may be anything, so it is picked: the decoder will say.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __call__(self, relatives: Iterable[str]) -> list[bool]:
        """Whether each path is picked."""
        included, excluded = _pattern(self.include), _pattern(self.exclude)
        return [
            bool(included.match(path) if self.include else _may_be_image(path))
            and not (self.exclude and excluded.match(path))
            for path in relatives
        ]


def _pattern(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs))


def _may_be_image(relative: str) -> bool:
    suffix = os.path.splitext(relative)[1].lower()
    return not suffix or suffix in IMAGE_SUFFIXES


def files_in(place: str, *, at_once: int = PREFIXES_AT_ONCE) -> Iterator[pa.Table]:
    """Pages of `FILES`, at most `ROWS_PER_PAGE` rows each, in the order of the names.

    Args:
        place: a folder, an `s3://` or `gs://` prefix, or one file. Hidden files are left out.
        at_once: prefixes of S3 that are listed at the same time, where the keys have several. What one of them gives
            waits on the disk for its turn.

    Raises:
        UserError: no such place, or it cannot be listed.
    """
    if not storage.exists(place):
        raise UserError(f"The images must be there: {place} does not exist; check the path.")
    try:
        if not storage.is_local(place):
            yield from _list_remote(place, at_once)
        elif os.path.isfile(place):
            yield _page([(os.path.basename(place), place, *_stat(os.fsencode(place)))])
        else:
            yield from _list_local(place)
    except OSError as error:
        raise UserError(
            f"The images must be listable: {place} is not ({storage.first_line(error)}); check the permissions, and "
            "for a bucket its name, AWS_ENDPOINT_URL and the credentials in the environment."
        ) from error


def _page(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(FILES)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, FILES, strict=True)], schema=FILES)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


# --- this machine


def _list_local(root: str) -> Iterator[pa.Table]:
    """Depth first, names in order, so that the same folder always gives the same manifest."""
    stack = [b""]
    while stack:
        folder = stack.pop()
        files, folders = _names_in(os.path.join(os.fsencode(root), folder))
        for start in range(0, len(files), ROWS_PER_PAGE):
            rows = []
            for name in files[start : start + ROWS_PER_PAGE].to_pylist():
                relative = os.path.join(folder, name)
                text = _text(relative)
                rows.append((text, os.path.join(root, text), *_stat(os.path.join(os.fsencode(root), relative))))
            yield _page(rows)
        stack.extend(os.path.join(folder, name) for name in reversed(folders.to_pylist()))


def _names_in(folder: bytes) -> tuple[pa.Array, pa.Array]:
    """The names of the files and of the folders in a folder, sorted; as Arrow arrays, a tenth of Python's objects."""
    kinds: dict[bool, list[pa.Array]] = {False: [], True: []}
    pending: dict[bool, list[bytes]] = {False: [], True: []}
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(os.fsdecode(entry.name)):
                continue
            is_folder = entry.is_dir()
            if is_folder and entry.is_symlink() and _leads_back(entry.path):
                continue
            pending[is_folder].append(entry.name)
            if len(pending[is_folder]) >= ROWS_PER_PAGE:
                kinds[is_folder].append(pa.array(pending[is_folder], pa.large_binary()))
                pending[is_folder] = []
    arrays = []
    for is_folder in (False, True):
        names = pa.concat_arrays([*kinds[is_folder], pa.array(pending[is_folder], pa.large_binary())])
        arrays.append(names.take(pc.sort_indices(names)))
    return arrays[0], arrays[1]


def _leads_back(link: bytes) -> bool:
    """Whether a link to a folder points to one that it lies in: following it would never end."""
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(link))]) == target


def _text(path: bytes) -> str:
    """The path; a byte that is not UTF-8 becomes `\\xNN`, which `fetch` understands."""
    return path.decode("utf-8", "backslashreplace")


def _stat(path: bytes) -> tuple[int, None, datetime]:
    """num_bytes, etag, mtime."""
    try:
        stat = os.stat(path)
    except OSError:  # a dangling link: it is listed, and reading it will say why not
        stat = os.lstat(path)
    return stat.st_size, None, datetime.fromtimestamp(stat.st_mtime, UTC)


# --- object stores


def _list_remote(root: str, at_once: int) -> Iterator[pa.Table]:
    bucket, prefix = storage.split_uri(root)
    if not bucket.startswith("s3://"):
        yield from _list_store(bucket, prefix)
        return
    start = f"{prefix}/" if prefix else ""
    if at_once > 1:
        folders, page = _folders(bucket, start)
        if len(folders) > 1:
            yield _objects(page.get("Contents", ()), bucket, start)
            yield from _list_folders(bucket, start, folders, at_once)
            return
    num_keys = 0
    for page in s3.pages(bucket, start):
        num_keys += len(page.get("Contents", ()))
        yield _objects(page.get("Contents", ()), bucket, start)
    if prefix and not num_keys:
        yield from _list_exact(bucket, prefix)


def _list_exact(bucket: str, key: str) -> Iterator[pa.Table]:
    """The object of that very key: `--images s3://bucket/one.jpg`."""
    for page in s3.pages(bucket, key):
        for found in page.get("Contents", ()):
            if found["Key"] == key:
                yield _page([_row(found, bucket, key.rsplit("/", 1)[-1])])
        return  # it sorts before all that begin with it


def _row(found: dict[str, Any], bucket: str, relative: str) -> tuple[Any, ...]:
    return relative, f"{bucket}/{found['Key']}", found["Size"], found["ETag"].strip('"'), found["LastModified"]


def _objects(contents: Iterable[dict[str, Any]], bucket: str, start: str) -> pa.Table:
    rows = []
    for found in contents:
        relative = found["Key"][len(start) :]
        is_folder = not relative or relative.endswith("/")  # consoles make empty objects for folders
        if not is_folder and not any(_is_hidden(part) for part in relative.split("/")):
            rows.append(_row(found, bucket, relative))
    return _page(rows)


def _folders(bucket: str, start: str) -> tuple[list[str], dict[str, Any]]:
    """The folders right below a prefix, if one page of the listing holds them all; and that page."""
    page = next(s3.pages(bucket, start, one_level=True), {})
    folders = [found["Prefix"] for found in page.get("CommonPrefixes", ())]
    if page.get("IsTruncated"):
        return [], page
    if len(folders) == 1 and not page.get("Contents"):
        return _folders(bucket, folders[0])
    return folders, page


def _list_folders(bucket: str, start: str, folders: Sequence[str], at_once: int) -> Iterator[pa.Table]:
    """Several prefixes at a time; each is written to a file of its own, and given on in the order of the names."""
    stopped = threading.Event()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(at_once) as threads:

        def spool(index: int) -> str:
            path = os.path.join(scratch, str(index))
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, FILES, options=options) as writer:
                for page in s3.pages(bucket, folders[index]):
                    if stopped.is_set():
                        break
                    writer.write_table(_objects(page.get("Contents", ()), bucket, start))
            return path

        pending: deque[Future[str]] = deque()
        try:
            for index in range(len(folders)):
                pending.append(threads.submit(spool, index))
            while pending:
                path = pending.popleft().result()
                with pa.OSFile(path) as file:
                    for batch in pa.ipc.open_stream(file):
                        yield pa.Table.from_batches([batch])
                os.unlink(path)
        finally:
            stopped.set()
            for future in pending:
                future.cancel()


def _list_store(bucket: str, prefix: str) -> Iterator[pa.Table]:
    import obstore

    try:
        for page in obstore.list(storage.object_store(bucket), prefix or None, chunk_size=1000):
            rows = []
            for found in page:
                relative = found["path"][len(prefix) :].lstrip("/") or found["path"].rsplit("/", 1)[-1]
                if not any(_is_hidden(part) for part in relative.split("/")):
                    uri = f"{bucket}/{found['path']}"
                    rows.append((relative, uri, found["size"], found["e_tag"], found["last_modified"]))
            yield _page(rows)
    except obstore.exceptions.BaseError as error:
        raise OSError(storage.first_line(error)) from error
