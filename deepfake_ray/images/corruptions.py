"""What happens to images on their way: named changes of whole pictures. Pure: knows neither Ray nor torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from deepfake_ray.images.augmentation import resaved
from deepfake_ray.images.decode import Pixels

JPEG, BLUR, OTHER = "JPEG quality", "blur, sigma in px", "other"
UPLOADED = ((1080, 80), (720, 70))
"""Longest side and JPEG quality of a picture that was posted, then passed on in a messenger. Platforms change theirs
often; these are of the order that is seen."""


@dataclass(frozen=True)
class Degradation:
    """One change: uint8 (H, W, 3) -> uint8 (H', W', 3), the same bytes for the same bytes."""

    title: str
    kind: str
    """Which curve it is a point of: JPEG, BLUR, or OTHER for none."""
    strength: float
    """Where on the curve."""
    apply: Callable[[Pixels], Pixels]


def _jpeg(quality: int) -> Degradation:
    return Degradation(f"JPEG {quality}", JPEG, quality, lambda pixels: resaved(pixels, "JPEG", quality))


def _blur(sigma: float) -> Degradation:
    def apply(pixels: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))

    return Degradation(f"blur, sigma {sigma:g}", BLUR, sigma, apply)


def _shrunk(pixels: Pixels, factor: float) -> Pixels:
    image = Image.fromarray(pixels)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _shared(pixels: Pixels) -> Pixels:
    for side, quality in UPLOADED:
        longest = max(pixels.shape[:2])
        pixels = resaved(_shrunk(pixels, side / longest) if longest > side else pixels, "JPEG", quality)
    return pixels


DEGRADATIONS = {
    **{f"jpeg_{quality}": _jpeg(quality) for quality in (95, 90, 75, 50, 30)},
    "webp_75": Degradation("WebP 75", OTHER, 0, lambda pixels: resaved(pixels, "WEBP", 75)),
    **{f"blur_{sigma}": _blur(sigma) for sigma in (1, 2, 4)},
    "half_size": Degradation("half the size", OTHER, 0, lambda pixels: _shrunk(pixels, 0.5)),
    "social_media": Degradation("posted and passed on", OTHER, 0, _shared),
}
"""By the name that predictions carry, in the order of the report."""
