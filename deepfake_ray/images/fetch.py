"""URIs -> encoded bytes, or an `ImageError` that keeps the storage's reason. Knows no Ray."""

import os
import re

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.storage.errors import image_error
from deepfake_ray.storage.files import is_local, open_regular, split_uri
from deepfake_ray.storage.s3 import get_object
from deepfake_ray.storage.stores import REQUEST_TIMEOUT_S, object_store

REMOTE_REQUESTS = 32
"""Requests in flight for each fetching process."""


class TooManyBytesError(ImageError):
    """A file is larger than what was to be read."""

    num_bytes: int
    """At least."""


def fetch(uri: str, max_bytes: int, timeout_s: float = REQUEST_TIMEOUT_S) -> bytes:
    """All bytes of one file or object.

    Args:
        uri: a path or URI. In a path, `\\xNN` stands for a byte that is not UTF-8, where no file has that very name.
        max_bytes: a larger one is not read.
        timeout_s: of one request; failures on the store's side are tried again for `stores.OUTAGE`.

    Raises:
        ImageError: with one of the codes not_found, forbidden, too_large, timeout, storage_error.
    """
    return _fetch_local(uri, max_bytes) if is_local(uri) else _fetch_remote(uri, max_bytes, timeout_s)


def too_many_bytes(num_bytes: int, max_bytes: int) -> TooManyBytesError:
    """The error of a file that is larger than the limit."""
    error = TooManyBytesError(ErrorCode.TOO_LARGE, f"{num_bytes} bytes, over the limit of {max_bytes}")
    error.num_bytes = num_bytes
    return error


def _require_at_most(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise too_many_bytes(num_bytes, max_bytes)


def _fetch_local(uri: str, max_bytes: int) -> bytes:
    """All of a regular file. Its size is not trusted: it may grow, and the files of /proc say 0."""
    try:
        descriptor = open_regular(uri.removeprefix("file://"))
        try:
            num_bytes = os.fstat(descriptor).st_size
            _require_at_most(num_bytes, max_bytes)
            data = os.read(descriptor, num_bytes + 1)
            while len(data) != num_bytes and (piece := os.read(descriptor, _BYTES_AT_ONCE)):
                data += piece
                _require_at_most(len(data), max_bytes)
            return data
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise image_error(error) from error


_BYTES_AT_ONCE = 1 << 20


def _fetch_remote(uri: str, max_bytes: int, timeout_s: float) -> bytes:
    import obstore
    from obstore.exceptions import BaseError

    bucket, key = split_uri(uri)
    try:
        if uri.startswith("s3://") and not _OBSTORE_PATH.fullmatch(key):
            return _get_with_botocore(bucket, key, max_bytes, timeout_s)
        response = obstore.get(object_store(bucket, timeout_s), key)
        _require_at_most(response.meta["size"], max_bytes)
        return bytes(response.bytes())
    except (BaseError, OSError, ValueError) as error:
        raise image_error(error) from error


def _get_with_botocore(bucket: str, key: str, max_bytes: int, timeout_s: float) -> bytes:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = get_object(bucket, key, timeout_s)
        _require_at_most(answer["ContentLength"], max_bytes)
        return bytes(answer["Body"].read())
    except (BotoCoreError, ClientError) as error:
        raise image_error(error) from error


_OBSTORE_PATH = re.compile(r"(?!\.{1,2}(/|$))[^/\0-\x1f\x7f]+(/(?!\.{1,2}(/|$))[^/\0-\x1f\x7f]+)*")
"""Keys that obstore takes: no control characters; no empty, `.` or `..` segment."""
