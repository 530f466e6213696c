"""Training augmentation: pure functions of uint8 images and one seed an image. Knows neither Ray nor torch."""

import io
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from deepfake_ray.images.decode import Pixels
from deepfake_ray.images.preprocessing import Place

ROTATION_DEGREES = 10.0
ROTATION_SHARE = 0.5
"""Rotating every image costs accuracy: interpolation smooths away the traces that the detector lives on."""
FLIP_SHARE = 0.5
DEGRADED_SHARE = 0.1
"""Of images re-compressed, and of images blurred (Wang et al. 2020, arXiv 1912.11035; their .5 hurts face swaps)."""
LOWEST_QUALITY = 30
LARGEST_SIGMA = 3.0


def seeds_of(seed: int, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A seed for each row and epoch, uint64 (B,): the same for any batch size, order and number of workers."""
    key = np.uint64(seed & 0xFFFFFFFF) << np.uint64(32) | np.uint64(epoch)
    return _mix(_mix(np.asarray(rows, np.uint64)) ^ _mix(np.array([key], np.uint64)))


def uniform(seeds: NDArray[np.uint64], draw: int) -> NDArray[np.float64]:
    """The `draw`-th random number of each seed: float64 (B,) in [0, 1)."""
    return np.asarray(_mix(seeds + _STEPS[draw]) >> np.uint64(11), np.float64) / 2**53


_STEPS = np.arange(1, 17, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # wraps at 2**64, as it should


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)


def baseline(images: Iterable[Pixels], seeds: NDArray[np.uint64]) -> Iterator[Pixels]:
    """The original system's recipe: horizontal flip and rotation by up to 10 degrees, each with p = .5.

    Args:
        images: uint8 (H, W, 3) each.
        seeds: uint64 (B,), one an image: decides what happens to it.

    Yields:
        Images of the same shapes; corners that a rotation uncovers are black.
    """
    flips = uniform(seeds, 0) < FLIP_SHARE
    rotates = uniform(seeds, 1) < ROTATION_SHARE
    degrees = (2 * uniform(seeds, 2) - 1) * ROTATION_DEGREES
    for image, flip, rotate, angle in zip(images, flips, rotates, degrees, strict=True):
        if flip:
            image = image[:, ::-1]
        if rotate:
            turned = Image.fromarray(np.ascontiguousarray(image)).rotate(angle, Image.Resampling.BILINEAR)
            image = np.asarray(turned)
        yield image


def places(seeds: NDArray[np.uint64]) -> list[Place]:
    """Of a random crop of each image."""
    return list(zip(uniform(seeds, 8).tolist(), uniform(seeds, 9).tolist(), strict=True))


def robust(images: Iterable[Pixels], seeds: NDArray[np.uint64]) -> Iterator[Pixels]:
    """Flip with p = .5; blur, then JPEG or WebP, each with p = .1: what happens to images on their way.

    Args and what it yields: as `baseline`. Qualities are uniform in 30..99, the blur's sigma in 0..3 pixels.
    """
    flips = uniform(seeds, 0) < FLIP_SHARE
    blurs = uniform(seeds, 1) < DEGRADED_SHARE
    sigmas = (uniform(seeds, 2) * LARGEST_SIGMA).tolist()
    saves = uniform(seeds, 3) < DEGRADED_SHARE
    qualities = (LOWEST_QUALITY + uniform(seeds, 4) * (100 - LOWEST_QUALITY)).astype(int)
    formats = np.where(uniform(seeds, 5) < 0.5, "JPEG", "WEBP")
    for image, flip, blur, sigma, save, quality, kind in zip(
        images, flips, blurs, sigmas, saves, qualities.tolist(), formats.tolist(), strict=True
    ):
        if flip:
            image = np.ascontiguousarray(image[:, ::-1])
        if blur:
            image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
        yield resaved(image, kind, quality) if save else image


def resaved(image: Pixels, kind: str, quality: int) -> Pixels:
    """The image after a lossy format (JPEG, WEBP) of some quality, 1 to 100."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, quality=quality)
    with Image.open(data) as read:
        return np.asarray(read.convert("RGB"))


RECIPES = {"baseline": baseline, "robust": robust}
