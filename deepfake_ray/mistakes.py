"""The most confident errors of a model, as pictures: what it was shown, and where its verdict comes from.

Knows no Ray.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from deepfake_ray import bundle, schema
from deepfake_ray.errors import ImageError
from deepfake_ray.images import Limits, Pixels, decode
from deepfake_ray.preparation import prepare
from deepfake_ray.scores import Threshold, called_fake

PER_CLASS = 8
MIN_SIDE = 160
"""Smaller pictures are enlarged to it, pixel by pixel."""
QUALITY = 88


@dataclass(frozen=True)
class Mistake:
    """One image that the model is sure of, and wrong about."""

    uri: str
    true_label: str
    p_fake: float
    picture: bytes
    """A JPEG: the square that the model is given, and beside it the same under its Grad-CAM, dark where there is none.
    Empty if the image cannot be read any more."""
    explained: bool
    """Whether there is a Grad-CAM."""


def worst(scored: pa.Table, threshold: Threshold) -> list[dict[str, Any]]:
    """Rows (uri, true_label, p_fake) of the errors that are farthest from the threshold: at most 8 of each class."""
    logits = scored["logit"].to_numpy()
    labels = np.array(scored["true_label"].to_pylist())
    found: list[dict[str, Any]] = []
    for label, side in ((schema.CLASSES[schema.FAKE], 1.0), (schema.CLASSES[schema.REAL], -1.0)):
        wrong = called_fake(logits, threshold) != (label == schema.CLASSES[schema.FAKE])
        rows = np.flatnonzero(wrong & (labels == label))
        rows = rows[np.argsort(side * logits[rows], kind="stable")][:PER_CLASS]
        found += scored.select(["uri", "true_label", "p_fake"]).take(pa.array(rows)).to_pylist()
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
    from deepfake_ray.attention import GradCam  # imports torch, which the driver does without
    from deepfake_ray.fetch import fetch

    explain = GradCam(model)
    preparation = bundle.load_spec(model).preparation
    for row in rows:
        try:
            decoded = decode(fetch(row["uri"], limits.max_bytes), limits, preparation.enough)
            image = prepare(decoded.pixels, preparation)
        except ImageError:
            yield Mistake(**row, picture=b"", explained=False)
            continue
        verdict = schema.REAL if row["true_label"] == schema.CLASSES[schema.FAKE] else schema.FAKE
        heat = explain.heat(image, verdict)
        under = _under(image, np.zeros(image.shape[:2]) if heat is None else heat)
        picture = simplejpeg.encode_jpeg(np.hstack([_enlarged(image), _enlarged(under)]), QUALITY)
        yield Mistake(**row, picture=picture, explained=heat is not None)


def _under(image: Pixels, heat: np.ndarray) -> Pixels:
    """The image in grey, the heat in colour over it."""
    from matplotlib import colormaps

    grey = image.mean(2, keepdims=True).repeat(3, 2)
    colour = 255 * colormaps["inferno"](heat)[..., :3]
    return (0.5 * grey + 0.5 * colour).astype(np.uint8)


def _enlarged(image: Pixels) -> Pixels:
    times = -(-MIN_SIDE // image.shape[0])
    size = (times * image.shape[1], times * image.shape[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))
