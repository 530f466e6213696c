"""URIs -> encoded bytes, or an `ImageError` that keeps the storage's reason. Knows no Ray."""

import os
from datetime import timedelta
from functools import lru_cache
from typing import Any

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.storage import first_line, is_local, split_uri

REMOTE_REQUESTS = 16
"""Requests in flight for each fetching process."""
REQUEST_TIMEOUT = timedelta(seconds=60)


@lru_cache(maxsize=64)
def object_store(bucket_uri: str) -> Any:
    """The obstore client of a bucket (`s3://bucket`), configured by the standard environment variables."""
    from obstore.store import from_url

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    options: dict[str, Any] = {"client_options": {"timeout": REQUEST_TIMEOUT}}
    if bucket_uri.startswith("s3://") and endpoint:
        options["client_options"]["allow_http"] = endpoint.startswith("http://")
        options["endpoint"] = endpoint
        options["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return from_url(bucket_uri, **options)


def fetch(uri: str, max_bytes: int) -> bytes:
    """All bytes of one file or object.

    Raises:
        ImageError: with one of the codes not_found, forbidden, too_large, storage_error.
    """
    return _fetch_local(uri, max_bytes) if is_local(uri) else _fetch_remote(uri, max_bytes)


def _too_large(num_bytes: int, max_bytes: int) -> ImageError:
    return ImageError(ErrorCode.TOO_LARGE, f"{num_bytes} bytes, over the limit of {max_bytes}")


def _fetch_local(uri: str, max_bytes: int) -> bytes:
    try:
        with open(uri.removeprefix("file://"), "rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > max_bytes:
                raise _too_large(num_bytes, max_bytes)
            return file.read()
    except FileNotFoundError as error:
        raise ImageError(ErrorCode.NOT_FOUND, "no such file") from error
    except PermissionError as error:
        raise ImageError(ErrorCode.FORBIDDEN, "permission denied") from error
    except OSError as error:
        raise ImageError(ErrorCode.STORAGE_ERROR, str(error)) from error


def _fetch_remote(uri: str, max_bytes: int) -> bytes:
    import obstore
    from obstore import exceptions

    bucket, key = split_uri(uri)
    try:
        response = obstore.get(object_store(bucket), key)
        if response.meta["size"] > max_bytes:
            raise _too_large(response.meta["size"], max_bytes)
        return bytes(response.bytes())
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise ImageError(ErrorCode.NOT_FOUND, "no such object") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
        raise ImageError(ErrorCode.FORBIDDEN, first_line(error)) from error
    except exceptions.BaseError as error:
        text = first_line(error)
        code = ErrorCode.FORBIDDEN if "403" in text else ErrorCode.STORAGE_ERROR
        raise ImageError(code, text) from error
