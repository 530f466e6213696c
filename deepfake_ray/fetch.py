"""URIs -> encoded bytes, or an `ImageError` that keeps the storage's reason. Knows no Ray."""

import os
import re

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.s3 import get_object
from deepfake_ray.storage import REQUEST_TIMEOUT_S, first_line, is_local, object_store, split_uri

REMOTE_REQUESTS = 32
"""Requests in flight for each fetching process."""


def fetch(uri: str, max_bytes: int, timeout_s: float = REQUEST_TIMEOUT_S) -> bytes:
    """All bytes of one file or object.

    Args:
        uri: a path or URI. In a path, `\\xNN` stands for a byte that is not UTF-8, where no file has that very name.
        max_bytes: a larger one is not read.
        timeout_s: of one request; failures on the store's side are tried again for `storage.OUTAGE`.

    Raises:
        ImageError: with one of the codes not_found, forbidden, too_large, timeout, storage_error.
    """
    return _fetch_local(uri, max_bytes) if is_local(uri) else _fetch_remote(uri, max_bytes, timeout_s)


def _too_large(num_bytes: int, max_bytes: int) -> ImageError:
    return ImageError(ErrorCode.TOO_LARGE, f"{num_bytes} bytes, over the limit of {max_bytes}")


def _fetch_local(uri: str, max_bytes: int) -> bytes:
    path = uri.removeprefix("file://")
    try:
        try:
            return _read(path, max_bytes)
        except FileNotFoundError:
            return _read(_raw(path), max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(ErrorCode.NOT_FOUND, "no such file") from error
    except PermissionError as error:
        raise ImageError(ErrorCode.FORBIDDEN, "permission denied") from error
    except (OSError, ValueError) as error:
        raise ImageError(ErrorCode.STORAGE_ERROR, first_line(error)) from error


def _read(path: str | bytes, max_bytes: int) -> bytes:
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > max_bytes:
            raise _too_large(num_bytes, max_bytes)
        return file.read()


def _raw(path: str) -> bytes:
    """The file name that `listing` wrote with `\\xNN` for bytes that are not UTF-8."""
    return re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes([int(match[1], 16)]), os.fsencode(path))


def _fetch_remote(uri: str, max_bytes: int, timeout_s: float) -> bytes:
    import obstore
    from obstore import exceptions

    bucket, key = split_uri(uri)
    if uri.startswith("s3://") and not _OBSTORE_PATH.fullmatch(key):
        return get_object(bucket, key, max_bytes, timeout_s)
    try:
        response = obstore.get(object_store(bucket, timeout_s), key)
        if response.meta["size"] > max_bytes:
            raise _too_large(response.meta["size"], max_bytes)
        return bytes(response.bytes())
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise ImageError(ErrorCode.NOT_FOUND, "no such object") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
        raise ImageError(ErrorCode.FORBIDDEN, _said(error)) from error
    except (exceptions.BaseError, ValueError) as error:
        raise ImageError(_code_of(str(error)), _said(error)) from error


_OBSTORE_PATH = re.compile(r"(?!\.{1,2}(/|$))[^/\0-\x1f\x7f]+(/(?!\.{1,2}(/|$))[^/\0-\x1f\x7f]+)*")
"""Keys that obstore takes: no control characters; no empty, `.` or `..` segment."""


def _code_of(text: str) -> ErrorCode:
    if "403" in text:
        return ErrorCode.FORBIDDEN
    return ErrorCode.TIMEOUT if re.search("timed ?out|timeout", text, re.IGNORECASE) else ErrorCode.STORAGE_ERROR


def _said(error: Exception) -> str:
    """The store's own words, which obstore puts below the request."""
    text = str(error)
    found = re.search(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]+)</Message>)?", text)
    return ": ".join(part for part in found.groups() if part) if found else first_line(error)
