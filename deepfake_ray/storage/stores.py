"""Clients of object stores: endpoints, regions, retries, from the standard environment variables. Knows no Ray."""

import os
from datetime import timedelta
from functools import lru_cache
from typing import Any

REQUEST_TIMEOUT_S = 60.0
OUTAGE = timedelta(minutes=3)
"""How long a request is repeated, with growing pauses, while the store throttles, fails or is away."""


def s3_endpoint() -> str | None:
    """The endpoint that the environment names for S3, if any."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def s3_region(bucket_uri: str) -> str | None:
    """The region of a bucket: what the environment names, else where AWS has it; None: unknown.

    On a machine of EC2 the environment seldom names one. Other S3 servers take any name.
    """
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or ("us-east-1" if s3_endpoint() else ask_region(bucket_uri))


def ask_region(bucket_uri: str) -> str | None:
    """Asked of AWS, where the environment names neither region nor endpoint."""
    if os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or s3_endpoint():
        return None
    return _region_of(bucket_uri.removeprefix("s3://"))


@lru_cache(maxsize=64)
def _region_of(bucket: str) -> str | None:
    from deepfake_ray.storage.s3 import bucket_region  # which imports this module

    return bucket_region(bucket)


def requester_pays() -> bool:
    """Whether the environment says that who asks pays, as some S3 buckets demand; obstore reads the same variable."""
    return os.environ.get("AWS_REQUEST_PAYER", "").lower() in ("requester", "true", "1")


@lru_cache(maxsize=64)
def object_store(bucket_uri: str, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
    """The obstore client of a bucket (`s3://bucket`), configured by the standard environment variables.

    It repeats a request that failed on the store's side, for as long as `OUTAGE`; one try takes at most `timeout_s`.
    """
    from obstore.store import from_url

    backoff = {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2}
    options: dict[str, Any] = {
        "client_options": {"timeout": timedelta(seconds=timeout_s)},
        "retry_config": {"max_retries": 1000, "retry_timeout": OUTAGE, "backoff": backoff},
    }
    if bucket_uri.startswith("s3://"):
        if endpoint := s3_endpoint():
            options["client_options"]["allow_http"] = endpoint.startswith("http://")
            options["endpoint"] = endpoint
        if region := s3_region(bucket_uri):
            options["region"] = region
        if requester_pays():
            options["request_payer"] = True
    return from_url(bucket_uri, **options)
