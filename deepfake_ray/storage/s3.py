"""What obstore does not do for S3: listing one level page by page, and keys that are no clean path. On botocore."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from deepfake_ray.storage import stores

RETRIES = 12
"""Of a request, with pauses that double up to 20 s: some three minutes."""


_OF_BUCKETS = "https://s3.amazonaws.com"
"""Where AWS says in which region a bucket lies."""


def client(bucket_uri: str, timeout_s: float = stores.REQUEST_TIMEOUT_S) -> Any:
    """The botocore client of a bucket, configured by the standard environment variables or the instance profile."""
    return _client(stores.s3_region(bucket_uri) or "us-east-1", stores.s3_endpoint(), timeout_s)


@lru_cache(maxsize=16)
def _client(region: str, endpoint: str | None, timeout_s: float) -> Any:
    from botocore.config import Config
    from botocore.session import Session

    config = Config(
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"mode": "standard", "total_max_attempts": RETRIES},
        max_pool_connections=64,
        # Other servers seldom answer at bucket.host.
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    return Session().create_client("s3", region_name=region, endpoint_url=endpoint, config=config)


def bucket_region(bucket: str) -> str | None:
    """The region in which AWS has a bucket, which it tells without credentials; None: it does not say."""
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import Session

    config = Config(
        signature_version=UNSIGNED, connect_timeout=10, read_timeout=10, retries={"total_max_attempts": 3},
        s3={"addressing_style": "path"},
    )  # fmt: skip
    asked = Session().create_client("s3", region_name="us-east-1", endpoint_url=_OF_BUCKETS, config=config)
    try:
        answer = asked.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    except BotoCoreError:
        return None
    return answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region") or None


def _payer() -> dict[str, str]:
    return {"RequestPayer": "requester"} if stores.requester_pays() else {}


def pages(bucket_uri: str, prefix: str, *, one_level: bool = False) -> Iterator[dict[str, Any]]:
    """The pages of a listing, at most 1,000 keys each: `Contents`, and with `one_level` `CommonPrefixes`.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: the bucket cannot be listed.
    """
    options = {"Delimiter": "/"} if one_level else {}
    paginator = client(bucket_uri).get_paginator("list_objects_v2")
    yield from paginator.paginate(Bucket=bucket_uri.removeprefix("s3://"), Prefix=prefix, **options, **_payer())


def get_object(bucket_uri: str, key: str, timeout_s: float) -> dict[str, Any]:
    """The answer to a request for one object, whatever its key is: `ContentLength` and `Body`, which is yet to read.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: it cannot be had.
    """
    found: dict[str, Any] = client(bucket_uri, timeout_s).get_object(
        Bucket=bucket_uri.removeprefix("s3://"), Key=key, **_payer()
    )
    return found
