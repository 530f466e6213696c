"""What lies under a prefix of an object store: page by page, in the order of the keys, in bounded memory."""

import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from deepfake_ray.console import say
from deepfake_ray.data.image_files import FILES, is_left_out, is_output, page
from deepfake_ray.errors import ErrorCode
from deepfake_ray.storage import files, outputs, s3
from deepfake_ray.storage.errors import code_of, said
from deepfake_ray.storage.stores import object_store

PREFIXES_AT_ONCE = 8


def failures() -> tuple[type[Exception], ...]:
    """What listing raises where the store fails or refuses."""
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.exceptions import BaseError

    return OSError, BaseError, BotoCoreError, ClientError


def list_remote(root: str, at_once: int) -> Iterator[pa.Table]:
    """Pages of `FILES`; see `listing.files_in`.

    Raises:
        Exception: one of `failures()`: the store cannot be listed.
    """
    bucket, prefix = files.split_uri(root)
    start = f"{prefix}/" if prefix else ""
    if not bucket.startswith("s3://"):
        yield from _list_store(bucket, prefix)
        return
    wanted = _Wanted(bucket, start)
    if at_once > 1:
        folders, first = _folders(bucket, start)
        if len(folders) > 1:
            yield wanted.objects(first.get("Contents", ()))
            folders = [folder for folder in folders if not wanted.passes_over(folder)]
            yield from _list_folders(bucket, start, folders, at_once)
            return
    num_keys = 0
    for found in s3.pages(bucket, start):
        num_keys += len(found.get("Contents", ()))
        yield wanted.objects(found.get("Contents", ()))
    if prefix and not num_keys:
        yield from _list_exact(bucket, prefix)


def _list_exact(bucket: str, key: str) -> Iterator[pa.Table]:
    """The object of that very key: `--images s3://bucket/one.jpg`."""
    for answer in s3.pages(bucket, key):
        for found in answer.get("Contents", ()):
            if found["Key"] == key:
                yield page([_row(found, bucket, key.rsplit("/", 1)[-1])])
        return  # it sorts before all that begin with it


def _row(found: dict[str, Any], bucket: str, relative: str) -> tuple[Any, ...]:
    return relative, f"{bucket}/{found['Key']}", found["Size"], found["ETag"].strip('"'), found["LastModified"]


class _Wanted:
    """Chooses among keys, in their order: none that are hidden, in systems' folders or in outputs of jobs."""

    def __init__(self, bucket: str, start: str):
        self._bucket, self._start = bucket, start
        self._output: str | None = None
        """The prefix of the last output that was met."""

    def passes_over(self, key: str) -> bool:
        """Whether a key, or all keys that begin with it, are left out."""
        in_output = self._output is not None and key.startswith(self._output)
        return in_output or is_left_out(key[len(self._start) :])

    def objects(self, contents: Iterable[dict[str, Any]]) -> pa.Table:
        """Some objects of a listing of S3 as `FILES`."""
        rows: list[tuple[Any, ...]] = []
        for found in contents:
            key = found["Key"]
            if output := self.new_output(key):
                rows.append(_passed_over(self._bucket, self._start, output))
            relative = key[len(self._start) :]
            is_folder = not relative or relative.endswith("/")  # consoles make empty objects for folders
            if not is_folder and not self.passes_over(key):
                rows.append(_row(found, self._bucket, relative))
        return page(rows)

    def new_output(self, key: str) -> str | None:
        """The prefix of an output below the start, at its first key: these marks sort before its other names."""
        folder = key.removesuffix(outputs.SUCCESS).removesuffix(outputs.LOCK)
        if folder == key or not folder.endswith("/") or folder == self._start or self.passes_over(folder):
            return None
        if not is_output(*_names_in(self._bucket, folder)):
            return None
        self._output = folder
        say(f"passed over: {self._bucket}/{folder}, which a job of this program wrote")
        return folder


def _passed_over(bucket: str, start: str, folder: str) -> tuple[Any, ...]:
    return folder[len(start) :], f"{bucket}/{folder}", None, None, None


def _names_in(bucket: str, folder: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders right below a prefix; of many, some. An output has few."""
    if bucket.startswith("s3://"):
        found = next(s3.pages(bucket, folder, one_level=True), {})
        names = [entry["Key"] for entry in found.get("Contents", ())]
        folders = [entry["Prefix"] for entry in found.get("CommonPrefixes", ())]
    else:
        import obstore

        listed = obstore.list_with_delimiter(object_store(bucket), folder)
        names, folders = [entry["path"] for entry in listed["objects"]], list(listed["common_prefixes"])
    return [key.rsplit("/", 1)[-1] for key in names], [key.rstrip("/").rsplit("/", 1)[-1] for key in folders]


def _folders(bucket: str, start: str) -> tuple[list[str], dict[str, Any]]:
    """The folders right below a prefix, if one page of the listing holds them all; and that page."""
    found = next(s3.pages(bucket, start, one_level=True), {})
    folders = [entry["Prefix"] for entry in found.get("CommonPrefixes", ())]
    if found.get("IsTruncated"):
        return [], found
    if len(folders) == 1 and not found.get("Contents"):
        return _folders(bucket, folders[0])
    return folders, found


def _list_folders(bucket: str, start: str, folders: Sequence[str], at_once: int) -> Iterator[pa.Table]:
    """Several prefixes at a time; each is written to a file of its own, and given on in the order of the names.

    One that may not be listed is passed over: policies may allow some prefixes of a bucket.
    """
    from botocore.exceptions import ClientError

    stopped = threading.Event()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(at_once) as threads:

        def spool(index: int) -> str:
            path = os.path.join(scratch, str(index))
            wanted = _Wanted(bucket, start)
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, FILES, options=options) as writer:
                try:
                    for answer in s3.pages(bucket, folders[index]):
                        if stopped.is_set():
                            break
                        writer.write_table(wanted.objects(answer.get("Contents", ())))
                except ClientError as error:
                    if code_of(error) is not ErrorCode.FORBIDDEN:
                        raise
                    writer.write_table(page([_passed_over(bucket, start, folders[index])]))
                    say(f"passed over: {bucket}/{folders[index]}, which may not be listed ({said(error)})")
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
    """What `obstore` lists of another store than S3: there a prefix is whole folders, or one object."""
    import obstore

    start = f"{prefix}/" if prefix else ""
    wanted = _Wanted(bucket, start)
    for answer in obstore.list(object_store(bucket), prefix or None, chunk_size=1000):
        rows: list[tuple[Any, ...]] = []
        for found in answer:
            key = found["path"]
            if output := wanted.new_output(key):
                rows.append(_passed_over(bucket, start, output))
            if key == prefix or not wanted.passes_over(key):
                relative = key.rsplit("/", 1)[-1] if key == prefix else key[len(start) :]
                rows.append((relative, f"{bucket}/{key}", found["size"], found["e_tag"], found["last_modified"]))
        yield page(rows)
