"""URIs -> prepared pixels, with what is known of each file: fetch, decode and prepare together. Knows no Ray."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.corruptions import DEGRADATIONS
from deepfake_ray.images.decode import Limits, Pixels, decode
from deepfake_ray.images.fetch import fetch
from deepfake_ray.images.preprocessing import CENTER, Place, Preparation, prepare
from deepfake_ray.images.read_ahead import fetch_ahead
from deepfake_ray.images.stopwatch import Stopwatch
from deepfake_ray.processes.allocator import give_back_freed_memory
from deepfake_ray.processes.memory_limit import renew
from deepfake_ray.storage.files import is_local
from deepfake_ray.storage.stores import REQUEST_TIMEOUT_S


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
    """See `perceptual_hash`; by `facts` alone."""
    given_up: str | None = None
    """Why it is not to be decoded again: it crashed the decoder or kept it busy; by `facts` alone."""
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

        renew()

        def loaded(position: int, data: bytes | ImageError) -> Loaded:
            with self.stopwatch.at("decode"):
                found = self._decoded(data, self.places if places is None else (places[position],))
                if _may_have_taken_much(found):
                    give_back_freed_memory()
                return found

        if all(is_local(uri) for uri in uris):
            for position in range(len(uris)):
                with watch(position):
                    with self.stopwatch.at("fetch"):
                        data = fetched(uris[position], self.limits)
                    image = loaded(position, data)
                yield image
            return
        ahead = fetch_ahead(lambda i, most: fetch(uris[i], most, self.timeout_s), len(uris), self.limits.max_bytes)
        for position in range(len(uris)):
            with self.stopwatch.at("fetch"):
                data = next(ahead)
            with watch(position):
                image = loaded(position, data)
            yield image

    def load_bytes(self, data: bytes) -> Loaded:
        """One image whose encoded bytes are in memory."""
        return self._decoded(data, self.places)

    def load_pixels(self, pixels: Pixels) -> Loaded:
        """One image that was decoded elsewhere: uint8 (H, W, 3) RGB, upright."""
        crops = tuple(prepare(pixels, self.preparation, place) for place in self.places)
        return Loaded(crops=crops, width=pixels.shape[1], height=pixels.shape[0])

    def _decoded(self, data: bytes | ImageError, places: Sequence[Place]) -> Loaded:
        if isinstance(data, ImageError):
            return Loaded(error=forgetful(data))
        sha256 = hashlib.sha256(data).hexdigest()
        known = None if self.recall is None else self.recall(sha256)
        if known is not None:
            return known
        try:
            # What happens to an image on its way happens to all of it.
            image = decode(data, self.limits, None if self.degradations else self.preparation.enough)
            crops = tuple(
                prepare(pixels, self.preparation, place) for pixels in self._variants(image.pixels) for place in places
            )
        except (ImageError, MemoryError) as error:
            return _failed(data, sha256, error if isinstance(error, ImageError) else _out_of_memory())
        return Loaded(
            crops=crops,
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


def fetched(uri: str, limits: Limits) -> bytes | ImageError:
    """The bytes of a local file, or why there are none."""
    try:
        return fetch(uri, limits.max_bytes)
    except ImageError as error:
        return error
    except MemoryError:
        return _out_of_memory()


def _out_of_memory() -> ImageError:
    return ImageError(ErrorCode.TOO_LARGE, "the decoder ran out of memory")


def _failed(data: bytes, sha256: str, error: ImageError) -> Loaded:
    # What is no image may be anybody's file: nothing is told of it but its size.
    is_image = error.code is not ErrorCode.NOT_AN_IMAGE
    return Loaded(error=forgetful(error), sha256=sha256 if is_image else None, num_bytes=len(data))


def forgetful(error: ImageError) -> ImageError:
    """The error without the frames that it went through, which hold the file and its pixels for as long as it lives."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def given_up(reason: str) -> ImageError:
    """The error of an image that a worker was told not to touch again: see `isolation.Items`."""
    return ImageError(ErrorCode.TIMEOUT if reason.startswith("took") else ErrorCode.DECODER_CRASHED, reason)


BYTES_PER_PIXEL = 40
"""Decoders and conversions took up to 20 (a PNG with alpha: pixels, their copy, and the picture over white)."""
SLACK_BYTES = 1 << 30
"""For all that is not pixels: files that are fetched ahead, their copies, libraries that are loaded late."""


def decoder_bytes(limits: Limits) -> int:
    """What decoding within some limits may take."""
    return SLACK_BYTES + limits.max_bytes + BYTES_PER_PIXEL * limits.max_pixels


PIXELS_OF_A_LARGE_IMAGE = 16_000_000
"""Beyond these, what decoding took is given back. It took 1.9 GiB for 99 million pixels, and milliseconds to give."""


def _may_have_taken_much(image: Loaded) -> bool:
    if image.error is not None:
        return image.error.code is ErrorCode.TOO_LARGE
    return (image.width or 0) * (image.height or 0) > PIXELS_OF_A_LARGE_IMAGE
