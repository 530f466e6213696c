"""The most confident errors of a model, as pictures: the image, and where the verdict comes from.

Knows no Ray.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from deepfake_ray import schema
from deepfake_ray.errors import ImageError
from deepfake_ray.images.decode import Limits, Pixels, decode
from deepfake_ray.images.preprocessing import STRETCH, prepare
from deepfake_ray.models import bundle
from deepfake_ray.models.scores import Threshold, is_predicted_fake

PER_CLASS = 8
MAX_SIDE = 480
"""Larger pictures are shrunk to it."""
MIN_SIDE = 160
"""Pictures whose longer side is smaller are enlarged to it, pixel by pixel."""
QUALITY = 85


@dataclass(frozen=True)
class Mistake:
    """One image that the model is sure of, and wrong about."""

    uri: str
    source: str | None
    true_label: str
    p_fake: float
    picture: bytes
    """A JPEG of the whole picture, upright; empty if the image cannot be read any more."""
    heat: bytes
    """A JPEG of the same in grey, or of the square that was cut out of it for the model, under its Grad-CAM; empty if
    there is none."""


def worst(scored: pa.Table, threshold: Threshold) -> list[dict[str, Any]]:
    """Rows (uri, source, true_label, p_fake) of the errors that are farthest from the threshold, at most 8 of each
    class.
    """
    logits = scored["logit"].to_numpy()
    labels = np.array(scored["true_label"].to_pylist())
    found: list[dict[str, Any]] = []
    for label, side in ((schema.CLASSES[schema.FAKE], 1.0), (schema.CLASSES[schema.REAL], -1.0)):
        wrong = is_predicted_fake(logits, threshold) != (label == schema.CLASSES[schema.FAKE])
        rows = np.flatnonzero(wrong & (labels == label))
        rows = rows[np.argsort(side * logits[rows], kind="stable")][:PER_CLASS]
        found += scored.select(["uri", "source", "true_label", "p_fake"]).take(pa.array(rows)).to_pylist()
    return found


def pictures(rows: Sequence[dict[str, Any]], model: str, limits: Limits) -> list[Mistake]:
    """Fetch the images of `worst` again, and explain the verdicts.

    Args:
        rows: of `worst`.
        model: the bundle.
        limits: of the images.
    """
    return list(_pictures(rows, model, limits))


def _pictures(rows: Sequence[dict[str, Any]], model: str, limits: Limits) -> Iterator[Mistake]:
    from deepfake_ray.images.fetch import fetch
    from deepfake_ray.models.gradcam import GradCam  # imports torch, which the driver does without

    explain = GradCam(model)
    preparation = bundle.load_spec(model).preparation
    for row in rows:
        try:
            data = fetch(row["uri"], limits.max_bytes)
            image = prepare(decode(data, limits, preparation.enough).pixels, preparation)
            whole = _thumbnail(decode(data, limits, MAX_SIDE).pixels)
        except ImageError:
            yield Mistake(**row, picture=b"", heat=b"")
            continue
        verdict = schema.REAL if row["true_label"] == schema.CLASSES[schema.FAKE] else schema.FAKE
        heat = explain.heat(image, verdict)
        under = b"" if heat is None else _jpeg(_under(whole if preparation.resize == STRETCH else image, heat))
        yield Mistake(**row, picture=_jpeg(whole), heat=under)


def _jpeg(pixels: Pixels) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY)


def _under(image: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """The image in grey, the heat (S, S), stretched to it, in colour over it."""
    from matplotlib import colormaps

    height, width = image.shape[:2]
    spread = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))
    grey = image.mean(2, keepdims=True).repeat(3, 2)
    colour = 255 * colormaps["inferno"](spread)[..., :3]
    return (0.5 * grey + 0.5 * colour).astype(np.uint8)


def _thumbnail(pixels: Pixels) -> Pixels:
    """The same picture with its longer side between `MIN_SIDE` and `MAX_SIDE`."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer > MAX_SIDE:
        size = [max(1, round(side * MAX_SIDE / longer)) for side in (width, height)]
        return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.LANCZOS))
    times = -(-MIN_SIDE // longer)
    return pixels.repeat(times, 0).repeat(times, 1)
