"""URIs -> prepared pixels, with what is known of each file: fetch, decode and prepare together. Knows no Ray."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from deepfake_ray.degradations import DEGRADATIONS
from deepfake_ray.errors import ImageError
from deepfake_ray.fetch import REMOTE_REQUESTS, fetch
from deepfake_ray.fingerprints import perceptual_hash
from deepfake_ray.images import Limits, Pixels, decode, header
from deepfake_ray.preparation import CENTER, Place, Preparation, prepare
from deepfake_ray.stopwatch import Stopwatch
from deepfake_ray.storage import REQUEST_TIMEOUT_S, is_local

T = TypeVar("T")


@dataclass(kw_only=True)
class Loaded:
    """One image, ready for the model; or why it is not: then `crops` is empty and `error` is set."""

    crops: tuple[Pixels, ...] = ()
    """uint8 (image_size, image_size, 3) RGB each: one or several; all of a degradation follow one another."""
    error: ImageError | None = None
    sha256: str | None = None
    num_bytes: int | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    jpeg_quality: int | None = None
    phash: int | None = None
    """See `perceptual_hash`; by `read_facts` alone."""
    logit: float | None = None
    """The score, where one is known already: then there are no crops."""


def _unwatched(_: int) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Loader:
    """How images are loaded.

    Args:
        limits: of bytes and pixels.
        preparation: the model's.
        places: of the crops of each image, where the preparation crops.
        degradations: names; the crops are of the picture after each of them, instead of as it is.
        timeout_s: of one request to an object store.
        recall: what is known of the bytes with that sha256; None: they have to be decoded.
        stopwatch: of the stages `fetch` (for requests that run ahead, waiting for them) and `decode` (with all that
            makes the model's pixels of a file).
    """

    limits: Limits
    preparation: Preparation
    places: Sequence[Place] = (CENTER,)
    degradations: Sequence[str] = ()
    timeout_s: float = REQUEST_TIMEOUT_S
    recall: Callable[[str], Loaded | None] | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def load_all(
        self,
        uris: Sequence[str],
        watch: Callable[[int], AbstractContextManager[None]] = _unwatched,
        places: Sequence[Place] | None = None,
    ) -> Iterator[Loaded]:
        """Load images in the order of `uris`, never skipping one.

        Remote ones are fetched some requests ahead. Local ones are read where they are wanted: a thread would cost
        more than reading a small file.

        Args:
            uris: what to load.
            watch: entered with an image's position for as long as it is decoded (and read, if it is a local file).
            places: of one crop for each image, instead of the loader's.
        """

        def read(position: int) -> bytes | ImageError:
            return self._read(uris[position])

        def decoded(position: int, data: bytes | ImageError) -> Loaded:
            with self.stopwatch.at("decode"):
                return self._decoded(data, self.places if places is None else (places[position],))

        if all(is_local(uri) for uri in uris):
            for position in range(len(uris)):
                with watch(position):
                    with self.stopwatch.at("fetch"):
                        data = read(position)
                    loaded = decoded(position, data)
                yield loaded
            return
        ahead = _ahead(read, len(uris), REMOTE_REQUESTS)
        for position in range(len(uris)):
            with self.stopwatch.at("fetch"):
                data = next(ahead)
            with watch(position):
                loaded = decoded(position, data)
            yield loaded

    def _read(self, uri: str) -> bytes | ImageError:
        try:
            return fetch(uri, self.limits.max_bytes, self.timeout_s)
        except ImageError as error:
            return error

    def _decoded(self, data: bytes | ImageError, places: Sequence[Place]) -> Loaded:
        if isinstance(data, ImageError):
            return Loaded(error=data)
        sha256 = hashlib.sha256(data).hexdigest()
        known = None if self.recall is None else self.recall(sha256)
        if known is not None:
            return known
        try:
            # What happens to an image on its way happens to all of it.
            image = decode(data, self.limits, None if self.degradations else self.preparation.enough)
        except ImageError as error:
            return Loaded(error=error, sha256=sha256, num_bytes=len(data))
        return Loaded(
            crops=tuple(
                prepare(pixels, self.preparation, place) for pixels in self._variants(image.pixels) for place in places
            ),
            sha256=sha256,
            num_bytes=len(data),
            format=image.format,
            width=image.width,
            height=image.height,
            jpeg_quality=image.jpeg_quality,
        )

    def _variants(self, pixels: Pixels) -> Iterator[Pixels]:
        if not self.degradations:
            yield pixels
        for name in self.degradations:
            yield DEGRADATIONS[name].apply(pixels)


def read_facts(uris: Sequence[str], limits: Limits) -> Iterator[Loaded]:
    """What files tell, and what the picture is near to, in the order of `uris`; `error` where one cannot be fetched.

    A file that is no image has neither format nor size.
    """

    def read(position: int) -> Loaded:
        try:
            data = fetch(uris[position], limits.max_bytes)
        except ImageError as error:
            return Loaded(error=error)
        found = header(data)
        facts = {} if found is None else {**asdict(found), "phash": perceptual_hash(data, limits)}
        return Loaded(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data), **facts)

    at_once = 1 if all(is_local(uri) for uri in uris) else REMOTE_REQUESTS
    yield from _ahead(read, len(uris), at_once)


def _ahead(function: Callable[[int], T], number: int, num_threads: int) -> Iterator[T]:
    """`map(function, range(number))` with threads, in order, at most twice as many results ahead as threads.

    Work is handed out in bursts, one item for each thread: a request that is alone on the way costs client and server
    twice as much CPU as one of many (benchmarks/results/scoring_2cpu_20261122.md).
    """
    pending: deque[Future[T]] = deque()
    next_one = 0
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            while pending or next_one < number:
                if len(pending) <= num_threads:
                    burst = range(next_one, min(next_one + num_threads, number))
                    pending.extend(threads.submit(function, position) for position in burst)
                    next_one += len(burst)
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
