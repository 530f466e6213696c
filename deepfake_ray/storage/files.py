"""URIs: which file system, whole-file writes, output directories and their `_SUCCESS`.

A place is named by a local path or by a URI (`s3://bucket/key`, `gs://...`). Keys are taken literally: nothing in
them is percent-decoded, so `#`, `?`, `%` and spaces in a name are part of the name.
"""

import contextlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow.fs as pafs

from deepfake_ray.errors import UserError
from deepfake_ray.storage.errors import remedy, said
from deepfake_ray.storage.stores import ask_region, object_store

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
SCHEMES = ("s3", "gs", "file")


def scheme_of(uri: str) -> str | None:
    """The lower-case scheme of a URI, or None for a local path."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else None


def is_local(uri: str) -> bool:
    """Whether the place is on this machine's own file system."""
    return scheme_of(uri) in (None, "file")


def absolute(uri: str) -> str:
    """The one spelling of a place: an absolute local path without a trailing slash, or the URI.

    Raises:
        UserError: for a scheme that is not known.
    """
    scheme = scheme_of(uri)
    if scheme is None:
        return _abspath(os.path.expanduser(uri))
    if scheme not in SCHEMES:
        remedy = "copy the data to one of these"
        if scheme in ("s3a", "s3n"):  # Hadoop's names of the same thing
            remedy = f"write s3://{uri[len(scheme) + 3 :]}"
        raise UserError(
            f"A place is a local path or begins with {', '.join(s + '://' for s in SCHEMES)}: got {uri!r}; {remedy}."
        )
    rest = uri[len(scheme) + 3 :]
    return _abspath(_path_of_file_uri(uri)) if scheme == "file" else f"{scheme}://{rest.rstrip('/')}"


def _abspath(path: str) -> str:
    path = os.path.abspath(path)
    return path[1:] if path.startswith("//") else path  # POSIX lets two slashes mean something else; Linux does not


def _path_of_file_uri(uri: str) -> str:
    """`file:///a/b` and `file://localhost/a/b` -> `/a/b`.

    Raises:
        UserError: it names another machine.
    """
    rest = uri[len("file://") :].removeprefix("localhost")
    if not rest.startswith("/"):
        raise UserError(f"A file URI must name a path on this machine: got {uri!r}; write file:///PATH or the path.")
    return rest


def join(uri: str, *parts: str) -> str:
    """`uri/part/part`, for paths and URIs alike."""
    return "/".join([uri.rstrip("/"), *parts])


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` -> (`s3://bucket`, `a/b`)."""
    scheme, rest = uri.split("://", 1)
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a place, and the place's path in it.

    S3's endpoint, region and credentials come from the standard AWS_* variables or the instance profile.
    """
    uri = absolute(uri)
    if is_local(uri):
        return pafs.LocalFileSystem(), uri
    root, key = split_uri(uri)
    try:
        # from_uri on the bucket alone: it honours AWS_ENDPOINT_URL, and the key stays unparsed.
        region = ask_region(root) if root.startswith("s3://") else None
        fs, bucket = pafs.FileSystem.from_uri(f"{root}?region={region}" if region else root)
    except OSError as error:
        raise UserError(_unreachable(uri, error)) from error
    return fs, f"{bucket}/{key}" if key else bucket


def _unreachable(uri: str, error: Exception) -> str:
    return f"The storage must answer: {uri} does not ({said(error)}); {remedy(uri, error)}."


def exists(uri: str) -> bool:
    """Whether a file or directory is there."""
    fs, path = filesystem(uri)
    try:
        return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)
    except OSError as error:
        raise UserError(_unreachable(uri, error)) from error


def list_names(uri: str) -> list[str]:
    """Names of what lies directly in a directory, sorted; empty if there is no such directory."""
    fs, path = filesystem(uri)
    try:
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    except NotADirectoryError as error:
        raise UserError(f"output must be a directory: {uri} is a file; name another.") from error
    except OSError as error:
        raise UserError(_unreachable(uri, error)) from error
    return sorted(info.base_name for info in infos)


def read_bytes(uri: str) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: if it is not there.
    """
    uri = absolute(uri)
    if is_local(uri):
        return Path(uri).read_bytes()
    import obstore

    bucket, key = split_uri(uri)
    try:
        return bytes(obstore.get(object_store(bucket), key).bytes())
    except obstore.exceptions.NotFoundError as error:
        raise FileNotFoundError(uri) from error
    except obstore.exceptions.BaseError as error:
        raise OSError(said(error)) from error


class _RemoteFile(io.RawIOBase):
    """What obstore's reader lacks of a Python file."""

    def __init__(self, reader: Any):
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buffer: Any) -> int:
        data = bytes(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def open_regular(path: str) -> int:
    """A descriptor to read a local file from; a pipe, a device, a socket or a folder is not opened.

    Opening a pipe waits for its writer, and reading a device may never end.

    Args:
        path: in which `\\xNN` stands for a byte that is not UTF-8, where no file has that very name.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    try:
        return _open_regular(path)
    except FileNotFoundError:
        raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes([int(match[1], 16)]), os.fsencode(path))
        return _open_regular(raw)


def _open_regular(path: str | bytes) -> int:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it has been replaced meanwhile
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor


def open_file(uri: str) -> IO[bytes]:
    """A file to read and seek in; failures on a remote store's side are tried again for `OUTAGE`."""
    uri = absolute(uri)
    if is_local(uri):
        return open(uri, "rb")
    import obstore

    bucket, key = split_uri(uri)
    return io.BufferedReader(_RemoteFile(obstore.open_reader(object_store(bucket), key)))


@contextlib.contextmanager
def new_file(uri: str) -> Iterator[str]:
    """A local path to write to; after the block the file is at `uri`, whole, in place of what was there.

    If the block fails, or the process is killed in it, nothing appears at `uri`.
    """
    uri = absolute(uri)
    if is_local(uri):
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        # Readers of Parquet directories pass over names with a dot, should a killed run leave one behind.
        temporary = temporary_name(uri)
    else:
        handle, temporary = tempfile.mkstemp(suffix=TEMPORARY)
        os.close(handle)
    try:
        yield temporary
        if is_local(uri):
            os.replace(temporary, uri)
        else:
            _put(uri, Path(temporary))
    finally:
        Path(temporary).unlink(missing_ok=True)


TEMPORARY = ".tmp"


def temporary_name(path: str) -> str:
    """A local path beside another, for a file that is to take its place."""
    return str(Path(path).with_name(f".{uuid.uuid4().hex}{TEMPORARY}"))


def _put(uri: str, data: bytes | Path) -> None:
    import obstore

    bucket, key = split_uri(uri)
    try:
        obstore.put(object_store(bucket), key, data)
    except obstore.exceptions.BaseError as error:
        raise OSError(f"{uri} cannot be written: {said(error)}") from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file that appears whole or not at all, replacing what was there."""
    uri = absolute(uri)
    if is_local(uri):
        with new_file(uri) as path:
            Path(path).write_bytes(data)
    else:
        _put(uri, data)  # an object store shows an object when it is complete


def local_copy(uri: str, folder: str) -> str:
    """The path of a file on this machine: its own, or that of a copy in `folder`."""
    uri = absolute(uri)
    if is_local(uri):
        return uri
    path = os.path.join(folder, uri.rsplit("/", 1)[-1])
    with open_file(uri) as source, open(path, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 22)
    return path


def read_json(uri: str) -> Any:
    """Parse a JSON file."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """Write a JSON file, indented, whole or not at all."""
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n").encode())


def upload_directory(local: str, uri: str) -> None:
    """Copy the files of a local directory, whole file by whole file, to a place."""
    for path in sorted(Path(local).rglob("*")):
        if not path.is_file():
            continue
        target = absolute(join(uri, path.relative_to(local).as_posix()))
        if is_local(target):
            with new_file(target) as copy:
                shutil.copyfile(path, copy)
        else:
            _put(target, path)


def delete(uri: str) -> None:
    """Remove one file."""
    fs, path = filesystem(uri)
    fs.delete_file(path)


def delete_directory(uri: str) -> None:
    """Remove a directory and all in it, if it is there."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.delete_dir(path)


def delete_leftovers(uri: str) -> None:
    """Remove what killed writers left in a local directory; an object store keeps nothing of them."""
    uri = absolute(uri)
    if is_local(uri):
        for path in Path(uri).glob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)
