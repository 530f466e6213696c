"""Degradations of whole pictures, against what they are named after."""

import numpy as np
import pytest
from PIL import Image

from deepfake_ray.images.corruptions import DEGRADATIONS


def picture(height=96, width=128, seed=0):
    """A photograph-like picture: low frequencies and some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((width, height))
    return np.clip(np.asarray(coarse, int) + random.integers(-8, 9, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_each_gives_another_picture_and_repeats(name):
    before = picture()
    kept = before.copy()
    after = DEGRADATIONS[name].apply(before)
    assert (after.dtype, after.ndim, after.shape[2]) == (np.uint8, 3, 3)
    assert np.array_equal(before, kept)
    assert after.shape != before.shape or (after != before).any()
    assert np.array_equal(after, DEGRADATIONS[name].apply(before))


def test_lower_qualities_lose_more():
    before = picture().astype(float)
    losses = [np.abs(DEGRADATIONS[f"jpeg_{q}"].apply(picture()) - before).mean() for q in (95, 90, 75, 50, 30)]
    assert losses == sorted(set(losses))


@pytest.mark.parametrize("sigma", [1, 2, 4])
def test_blur_has_its_sigma(sigma):
    point = np.zeros((65, 65, 3), np.uint8)
    point[:, 32] = 255  # a line, whose profile is the kernel
    profile = DEGRADATIONS[f"blur_{sigma}"].apply(point)[32, :, 0].astype(float)
    x = np.arange(65) - 32
    assert np.sqrt((profile * x**2).sum() / profile.sum()) == pytest.approx(sigma, rel=0.1)


def test_sizes():
    assert DEGRADATIONS["half_size"].apply(picture(97, 128)).shape == (48, 64, 3)
    assert DEGRADATIONS["half_size"].apply(picture(1, 1)).shape == (1, 1, 3)
    assert DEGRADATIONS["social_media"].apply(picture(1000, 2000)).shape == (360, 720, 3)
    assert DEGRADATIONS["social_media"].apply(picture(200, 300)).shape == (200, 300, 3), "small ones are not enlarged"
