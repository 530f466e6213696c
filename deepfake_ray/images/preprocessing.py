"""Pixels of any size -> the model's input, the same in training and in scoring. Knows neither Ray nor torch."""

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from deepfake_ray.images.decode import Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

STRETCH, CROP = "stretch", "crop"

Place = tuple[float, float]
"""Where a crop lies in its image, across and down: (0, 0) is the upper left corner, (1, 1) the lower right one."""
CENTER: Place = (0.5, 0.5)

DECODE_MARGIN = 1.5
"""`Preparation.decode_margin` of new models: enough that what is left to resize is antialiased as ever. JPEGs of 12
megapixels then become squares of 224 px that differ from those of whole decoding by .27 grey levels on average, and by
4 at most (benchmarks/results/peers_2cpu_20261123.md)."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How pixels become the model's input; travels in the bundle, so that training and scoring cannot differ.

    `stretch`: the image is resized to `image_size` x `image_size`, its aspect ratio given up. `crop`: a square of
    `image_size` is cut out of it, its pixels untouched; an image with a shorter side is enlarged first. Both are
    normalised on the device as (pixel / 255 - mean) / std.
    """

    image_size: int
    resize: str = STRETCH
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    reencode: int | None = None
    """Afterwards the square goes through a JPEG of this quality, so that all images share its traces."""
    decode_margin: float | None = None
    """With `stretch`: JPEGs are decoded at the smallest of libjpeg's scales at which both sides are at least so many
    times `image_size`, which for large ones is several times faster. None: at their full size."""

    @property
    def enough(self) -> int | None:
        """Pixels that each side of a decoded image has to have at least; None: all that there are."""
        if self.decode_margin is None or self.resize != STRETCH:
            return None
        return ceil(self.decode_margin * self.image_size)

    def to_json(self) -> dict[str, Any]:
        """For model.json; what is None is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Preparation":
        """The inverse of `to_json`.

        Raises:
            ValueError: the bundle asks for a preparation that this version does not know.
        """
        preparation = cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})
        if preparation.resize not in (STRETCH, CROP) or preparation.interpolation != "bilinear":
            raise ValueError(f"unknown preparation: {preparation.resize}, {preparation.interpolation}")
        return preparation


def prepare(pixels: Pixels, preparation: Preparation, place: Place = CENTER) -> Pixels:
    """Pixels of any size -> uint8 (image_size, image_size, 3); bilinear where it resizes, antialiased if it shrinks.

    Args:
        pixels: uint8 (H, W, 3).
        preparation: how.
        place: of the crop, where the preparation crops.
    """
    square = _square(pixels, preparation, place)
    if preparation.reencode is None:
        return square
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(square), preparation.reencode, colorsubsampling="420")
    return simplejpeg.decode_jpeg(data, "RGB")


def _square(pixels: Pixels, preparation: Preparation, place: Place) -> Pixels:
    size = preparation.image_size
    height, width = pixels.shape[:2]
    if preparation.resize == STRETCH:
        return _resized(pixels, size, size)
    if min(height, width) < size:
        scale = size / min(height, width)
        height, width = max(size, round(height * scale)), max(size, round(width * scale))
        pixels = _resized(pixels, height, width)
    left, top = round(place[0] * (width - size)), round(place[1] * (height - size))
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def spread_crops(number: int) -> list[Place]:
    """Places of so many crops: the centre first, then such as leave no large gap, whatever their number.

    The R2 sequence (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"), from the centre.
    """
    plastic = 1.32471795724474602596  # the real root of x**3 = x + 1
    return [((0.5 + i / plastic) % 1.0, (0.5 + i / plastic**2) % 1.0) for i in range(number)]
