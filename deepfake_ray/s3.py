"""What obstore does not do for S3: listing one level page by page, and keys that are no clean path. On botocore."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from deepfake_ray import storage
from deepfake_ray.errors import ErrorCode, ImageError

RETRIES = 12
"""Of a request, with pauses that double up to 20 s: some three minutes."""


@lru_cache(maxsize=4)
def client(timeout_s: float = storage.REQUEST_TIMEOUT_S) -> Any:
    """The botocore client of S3, configured by the standard environment variables or the instance profile."""
    from botocore.config import Config
    from botocore.session import Session

    endpoint = storage.s3_endpoint()
    config = Config(
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"mode": "standard", "total_max_attempts": RETRIES},
        max_pool_connections=64,
        # Other servers seldom answer at bucket.host.
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    return Session().create_client(
        "s3", region_name=storage.s3_region() or "us-east-1", endpoint_url=endpoint, config=config
    )


def pages(bucket_uri: str, prefix: str, *, one_level: bool = False) -> Iterator[dict[str, Any]]:
    """The pages of a listing, at most 1,000 keys each: `Contents`, and with `one_level` `CommonPrefixes`.

    Raises:
        OSError: the bucket cannot be listed.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    options = {"Delimiter": "/"} if one_level else {}
    paginator = client().get_paginator("list_objects_v2")
    try:
        yield from paginator.paginate(Bucket=bucket_uri.removeprefix("s3://"), Prefix=prefix, **options)
    except (BotoCoreError, ClientError) as error:
        raise OSError(storage.first_line(error)) from error


def get_object(bucket_uri: str, key: str, max_bytes: int, timeout_s: float) -> bytes:
    """All bytes of one object, whatever its key is.

    Raises:
        ImageError: with one of the codes not_found, forbidden, too_large, timeout, storage_error.
    """
    from botocore import exceptions

    try:
        answer = client(timeout_s).get_object(Bucket=bucket_uri.removeprefix("s3://"), Key=key)
        if answer["ContentLength"] > max_bytes:
            raise ImageError(ErrorCode.TOO_LARGE, f"{answer['ContentLength']} bytes, over the limit of {max_bytes}")
        return bytes(answer["Body"].read())
    except exceptions.ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = {403: ErrorCode.FORBIDDEN, 404: ErrorCode.NOT_FOUND}.get(status, ErrorCode.STORAGE_ERROR)
        raise ImageError(code, storage.first_line(error)) from error
    except (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError) as error:
        raise ImageError(ErrorCode.TIMEOUT, storage.first_line(error)) from error
    except exceptions.BotoCoreError as error:
        raise ImageError(ErrorCode.STORAGE_ERROR, storage.first_line(error)) from error
