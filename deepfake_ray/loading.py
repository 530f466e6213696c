"""URIs -> prepared pixels, with what is known of each file: fetch, decode and prepare together. Knows no Ray."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from deepfake_ray.errors import ImageError
from deepfake_ray.fetch import REMOTE_REQUESTS, fetch
from deepfake_ray.images import Limits, Pixels, Preparation, decode, prepare
from deepfake_ray.storage import is_local

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One image, ready for the model; or why it is not: then `pixels` is None and `error` is set."""

    uri: str
    pixels: Pixels | None = None
    """uint8 (image_size, image_size, 3) RGB."""
    error: ImageError | None = None
    sha256: str | None = None
    num_bytes: int | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    jpeg_quality: int | None = None


def load_all(
    uris: Sequence[str], limits: Limits, preparation: Preparation, *, num_threads: int = 1
) -> Iterator[Loaded]:
    """Load images in the order of `uris`, never skipping one.

    Args:
        uris: what to load.
        limits: of bytes and pixels.
        preparation: the model's.
        num_threads: that decode. With one, local files are read and decoded where they are asked for (a thread
            costs more than the read of a small file), and remote ones are fetched some requests ahead.
    """

    def read(uri: str) -> bytes | ImageError:
        try:
            return fetch(uri, limits.max_bytes)
        except ImageError as error:
            return error

    def load(uri: str) -> Loaded:
        return _decoded(uri, read(uri), limits, preparation)

    if num_threads > 1:
        yield from _ahead(load, uris, max(num_threads, REMOTE_REQUESTS))
    elif all(is_local(uri) for uri in uris):
        yield from map(load, uris)
    else:
        for uri, data in zip(uris, _ahead(read, uris, REMOTE_REQUESTS), strict=True):
            yield _decoded(uri, data, limits, preparation)


def _ahead(function: Callable[[str], T], uris: Sequence[str], num_threads: int) -> Iterator[T]:
    """`map` with threads, in order, at most twice as many results ahead as threads."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        for uri in uris:
            if len(pending) >= 2 * num_threads:
                yield pending.popleft().result()
            pending.append(threads.submit(function, uri))
        while pending:
            yield pending.popleft().result()


def _decoded(uri: str, data: bytes | ImageError, limits: Limits, preparation: Preparation) -> Loaded:
    if isinstance(data, ImageError):
        return Loaded(uri=uri, error=data)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = decode(data, limits)
    except ImageError as error:
        return Loaded(uri=uri, error=error, sha256=sha256, num_bytes=len(data))
    return Loaded(
        uri=uri,
        pixels=prepare(image.pixels, preparation),
        sha256=sha256,
        num_bytes=len(data),
        format=image.format,
        width=image.width,
        height=image.height,
        jpeg_quality=image.jpeg_quality,
    )
