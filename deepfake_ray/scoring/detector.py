"""`Detector`: scores a few images in this process, as `from deepfake_ray import Detector` has it. Knows no Ray."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeGuard, cast, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from deepfake_ray import schema
from deepfake_ray.config import Choice, Precision
from deepfake_ray.data.tables import manifest_rows
from deepfake_ray.errors import ErrorCode, ImageError, UserError
from deepfake_ray.images.decode import Limits, Pixels
from deepfake_ray.images.loading import Loaded, Loader, forgetful
from deepfake_ray.images.pictures import pixels_of
from deepfake_ray.images.preprocessing import spread_crops
from deepfake_ray.images.stopwatch import Stopwatch
from deepfake_ray.models import bundle
from deepfake_ray.models.hardware import chosen_precision, cpu_computes_bf16, gpu_computes_bf16
from deepfake_ray.scoring.rows import predictions
from deepfake_ray.scoring.spec import ScorerSpec, default_batch_size, require_suited
from deepfake_ray.scoring.worker import FixedBatch, require_number
from deepfake_ray.storage import files

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
"""A path or URI, an encoded file, a picture of Pillow, or uint8 (H, W, 3) RGB pixels, upright."""
Row = dict[str, Any]
"""One row of `schema.PREDICTIONS`: column -> value, None where unknown."""


class Detector:
    """A bundle that scores images in this process, without Ray.

    Logits equal those that jobs/score.py writes for the same file to the bit where device, precision and batch size
    are the same: every forward pass has the shape (`batch_size`, S, S, 3), on one thread, its empty places filled.
    `batch_size` of a run is in its run.json; its default is this one's, but for runs of fewer images per worker. A
    smaller one answers sooner, and may change the last digits of a logit.

    Pillow's pictures and arrays are scored from the pixels that they hold: a JPEG opened elsewhere may differ from its
    file by some grey levels, because files are decoded at a reduced scale where that suffices. Decoders run in this
    process, without a time limit: files that nobody has checked belong into a job, which survives what they do.

    Args:
        model: the bundle's directory or URI.
        threshold: an image is called fake from this p_fake on: the name of one of the bundle's, or a number in [0, 1].
        use_gpu: auto, yes or no. auto: where there is one.
        precision: auto, bf16 or fp32. auto: bf16 where this machine computes so natively, else fp32.
        batch_size: images per forward pass. Default: as of a scoring job.
        crops: squares per image, for a model that was trained on crops; the mean of their logits counts.
        max_image_bytes: a larger file becomes the error too_large, unread.
        max_image_pixels: a file that declares more becomes the error too_large, undecoded.
        image_timeout_s: of one request to an object store.

    Raises:
        UserError: there is no such bundle, or it does not suit the other settings.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        threshold: str | float = "balanced",
        use_gpu: Choice = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        crops: int = 1,
        max_image_bytes: int = 100 * 1024 * 1024,
        max_image_pixels: int = 100_000_000,
        image_timeout_s: float = 60.0,
    ):
        place = os.fspath(model)
        for name, value in (("batch_size", batch_size), ("crops", crops)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be greater than 0: got {value}; leave it out for the default.")
        for name, asked, known in (
            ("use_gpu", use_gpu, ("auto", "yes", "no")),
            ("precision", precision, ("auto", schema.BF16, schema.FP32)),
        ):
            if asked not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}: got {asked!r}; leave it out for auto.")
        spec = bundle.load_spec(place)
        require_suited(spec, place, crops=crops, use_gpu=use_gpu, precision=precision)
        on_gpu = not spec.scales and use_gpu != "no" and _has_gpu(required=use_gpu == "yes")
        native = gpu_computes_bf16 if on_gpu else cpu_computes_bf16
        self._spec = ScorerSpec(
            model=files.absolute(place),
            chunks="",
            threshold=spec.threshold(str(threshold)),
            batch_size=batch_size or default_batch_size(spec.preparation.image_size, use_gpu=on_gpu),
            num_crops=crops,
            precision=chosen_precision(precision, quantized=bool(spec.scales), is_native=native),
            limits=Limits(max_bytes=max_image_bytes, max_pixels=max_image_pixels),
            image_timeout_s=image_timeout_s,
            max_error_share=1.0,
            device="cuda" if on_gpu else "cpu",
            run_id="",
        )
        self._loader = Loader(
            limits=self._spec.limits,
            preparation=spec.preparation,
            places=spread_crops(crops),
            timeout_s=image_timeout_s,
        )
        with _one_thread():
            from deepfake_ray.models.inference import Predictor

            self._predictor = Predictor(
                self._spec.model, device=self._spec.device, precision=self._spec.precision, num_threads=1
            )
        self._lock = threading.Lock()

    @property
    def model_id(self) -> str:
        """Of the scores: 16 hex digits that change with anything that can change one."""
        return self._predictor.spec.model_id_in(self._spec.precision)

    @property
    def precision(self) -> str:
        """In which it computes: bf16, fp32 or int8."""
        return self._spec.precision

    @property
    def batch_size(self) -> int:
        """Images per forward pass."""
        return self._spec.batch_size

    @property
    def threshold(self) -> float:
        """The p_fake from which on an image is called fake."""
        return self._spec.threshold.p_fake

    @overload
    def __call__(self, images: ImageLike) -> Row: ...  # type: ignore[overload-overlap]  # text is iterable, too

    @overload
    def __call__(self, images: Iterable[ImageLike]) -> list[Row]: ...

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> Row | list[Row]:
        """Score images; one that cannot be read has `status` error, and says why.

        Args:
            images: several, or one.

        Returns:
            For each image, in the same order, a dict with the columns of predictions; for a single one, its dict.
            `uri` is None for what has none, and `run_id` always is.

        Raises:
            UserError: an item is of a kind that is no image.
            JobError: the model is broken: its logits are not finite.
        """
        if _is_one(images):
            return self._score([images])[0]
        return self._score(list(cast(Iterable[ImageLike], images)))

    def _score(self, images: Sequence[ImageLike]) -> list[Row]:
        items = [_checked(image) for image in images]
        with self._lock, _one_thread():
            batch = FixedBatch(self._predictor, self._spec.batch_size, Stopwatch())
            loaded: list[Loaded] = []
            for position, image in enumerate(self._load(items)):
                for crop in image.crops:
                    batch.add((position, 0), crop)
                image.crops = ()
                loaded.append(image)
            scored = batch.finish()
        uris = [item if isinstance(item, str) else None for item in items]
        logits = np.full((len(items), 1), np.nan, np.float32)
        for place, logit in scored.items():
            require_number(logit, uris[place[0]] or f"image {place[0]}")
            logits[place] = logit
        rows = manifest_rows({"uri": uris, "row": pa.array(np.arange(len(items)))}, len(items))
        table = predictions(rows, loaded, logits, self._predictor.spec, self._spec)
        return [row | {"run_id": None} for row in table.to_pylist()]

    def _load(self, items: "Sequence[str | bytes | Image.Image | Pixels]") -> Iterator[Loaded]:
        fetched = self._loader.load_all([item for item in items if isinstance(item, str)])
        for item in items:
            if isinstance(item, str):
                yield next(fetched)
            elif isinstance(item, bytes):
                yield self._loader.load_bytes(item)
            elif isinstance(item, Image.Image):
                yield self._of_picture(item)
            else:
                yield self._loader.load_pixels(item)

    def _of_picture(self, picture: Image.Image) -> Loaded:
        try:
            return self._loader.load_pixels(pixels_of(picture, self._spec.limits))
        except MemoryError:
            return Loaded(error=ImageError(ErrorCode.TOO_LARGE, "the decoder ran out of memory"))
        except ImageError as error:
            return Loaded(error=forgetful(error))


def _is_one(images: Any) -> TypeGuard[ImageLike]:
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)


def _checked(item: Any) -> "str | bytes | Image.Image | Pixels":
    """What an item is: a URI as jobs write it, bytes, a picture, or pixels.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(item, str | os.PathLike):
        place = os.fspath(item)
        if not isinstance(place, str) or not place:
            raise UserError(f"An image's path must be text, and name a file: got {place!r}; give a path or URI.")
        return files.absolute(place)
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or not item.size:
            raise UserError(
                f"An array must be uint8 (height, width, 3), in RGB: got {item.dtype} {item.shape}; convert it, or "
                "give the file."
            )
        return np.ascontiguousarray(item)
    if isinstance(item, Image.Image):
        return item
    raise UserError(
        "An image must be a path or URI, bytes of a file, a PIL image or a uint8 array (height, width, 3): got "
        f"{type(item).__name__}; convert it."
    )


def _has_gpu(*, required: bool) -> bool:
    import torch

    found = torch.cuda.is_available()
    if required and not found:
        raise UserError("use_gpu yes needs a GPU: torch finds none on this machine; use auto.")
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """As scorers compute; the caller's number of threads is set back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
