"""A small synthetic Real/Fake set, generated from a seed: for the quickstart and the tests, not for any claim.

Real images are crops of a photograph that scikit-learn ships. Fake ones are crops of the same photograph that went
down to half their size and up again, as the up-sampling layers of generators do, which leaves a trace that a detector
can learn (Odena et al. 2016; Zhang et al. 2019, arXiv 1907.06515). Nothing here says how well real deepfakes are
found. Both classes are saved by the same JPEG encoder, so that the file gives nothing away, and neither has crops of
plain sky, where up-sampling leaves no trace. The photograph is cut into vertical bands: training, validation and test
crops come from different ones.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from deepfake_ray.images.decode import Pixels

SIZE = 32
"""Side of a crop in pixels."""
JPEG_QUALITY = 95
BANDS = {"Train": (0.0, 0.6), "Validation": (0.6, 0.8), "Test": (0.8, 1.0)}
"""Share of the photograph's width that each split's crops come from; crops do not reach over the edge."""
PHOTOGRAPH = "china.jpg"
UPSAMPLERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
"""Sources of the fake class."""
MIN_DETAIL = 8.0
"""Mean absolute difference of neighbouring pixels, in grey levels, that a crop must have."""


def generate(folder: str, *, seed: int = 0, num_train: int = 2000, num_test: int = 400) -> None:
    """Write `Train|Validation|Test/Real/*.jpg` and `.../Fake/SOURCE/*.jpg`, classes in equal parts.

    Args:
        folder: local directory.
        seed: same seed, same bytes.
        num_train: training images.
        num_test: validation images, and as many test images.
    """
    random = np.random.default_rng(seed)
    photograph = np.asarray(load_sample_image(PHOTOGRAPH))
    sources = list(UPSAMPLERS)
    for split, band in BANDS.items():
        for index in range((num_train if split == "Train" else num_test) // 2):
            _save(_crop(photograph, band, random), Path(folder, split, "Real", f"{index:05d}.jpg"))
            source = sources[index % len(sources)]
            fake = _resample(_crop(photograph, band, random), UPSAMPLERS[source])
            _save(fake, Path(folder, split, "Fake", source, f"{index:05d}.jpg"))


def _crop(photograph: Pixels, band: tuple[float, float], random: np.random.Generator) -> Pixels:
    height, width = photograph.shape[:2]
    while True:
        left = random.integers(int(band[0] * width), int(band[1] * width) - SIZE + 1)
        top = random.integers(0, height - SIZE + 1)
        crop = photograph[top : top + SIZE, left : left + SIZE]
        if np.abs(np.diff(crop.astype(np.int16), axis=1)).mean() >= MIN_DETAIL:
            return crop


def _resample(crop: Pixels, upsampler: Image.Resampling) -> Pixels:
    small = Image.fromarray(crop).resize((SIZE // 2, SIZE // 2), Image.Resampling.BOX)
    return np.asarray(small.resize((SIZE, SIZE), upsampler))


def _save(pixels: Pixels, path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getvalue())
