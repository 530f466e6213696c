"""Perceptual hashes: the same picture re-saved is near, other pictures are not."""

import io
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from deepfake_ray.data import leakage
from deepfake_ray.images import perceptual_hash
from deepfake_ray.images.decode import Limits

LIMITS = Limits(max_bytes=10**8, max_pixels=10**8)


@lru_cache
def photographs():
    return [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


def crop(index, size=128):
    photograph = photographs()[index % 2]
    left, top = 61 * index % (640 - size), 37 * index % (427 - size)
    return Image.fromarray(photograph[top : top + size, left : left + size])


def saved(image, kind="JPEG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def phash(data):
    return perceptual_hash.perceptual_hash(data, LIMITS)


@pytest.mark.parametrize(
    "again",
    [
        lambda image: saved(image, quality=50),
        lambda image: saved(image, "PNG"),
        lambda image: saved(image, "WEBP", quality=75),
        lambda image: saved(image.resize((64, 64), Image.Resampling.BICUBIC), quality=90),
        lambda image: saved(image.resize((1000, 1000)), quality=90),  # decoded at a fraction of its size
    ],
)
def test_the_same_picture_is_near(again):
    differing = [(phash(saved(crop(i), quality=95)) ^ phash(again(crop(i)))).bit_count() for i in range(30)]
    assert sum(bits <= leakage.NEAR_BITS for bits in differing) >= 27


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_file_has_the_hash_of_the_upright_picture(orientation):
    """It hashes what is decoded: with EXIF applied, and CMYK as it looks."""
    for i in range(6):
        stored = crop(i).transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright, turned = phash(saved(crop(i), quality=95)), phash(saved(stored, quality=95, exif=exif))
        assert (upright ^ turned).bit_count() <= leakage.NEAR_BITS
        assert (upright ^ phash(saved(crop(i).convert("CMYK"), quality=95))).bit_count() <= leakage.NEAR_BITS


def test_other_pictures_are_not_near():
    hashes = [phash(saved(crop(i), "PNG")) for i in range(60)]
    differing = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(differing) > leakage.NEAR_BITS


def test_what_is_no_picture_or_flat_has_no_hash():
    assert phash(b"not an image") is None
    assert phash(saved(crop(0))[:200]) is None
    assert phash(saved(Image.new("RGB", (64, 64), "grey"), "PNG")) is None


def test_all_near_pairs_are_found_and_no_others():
    random = np.random.default_rng(0)
    theirs = random.integers(0, 2**63, 500, dtype=np.uint64)
    ours = random.integers(0, 2**63, 200, dtype=np.uint64)
    planted = {i: i % 7 for i in range(70)}  # 0 to 6 bits away from theirs[i]
    for i, bits in planted.items():
        flips = random.choice(63, bits, replace=False).astype(np.uint64)
        ours[i] = theirs[i] ^ (np.uint64(1) << flips).sum(dtype=np.uint64)
    found = set(leakage.near_pairs(ours, theirs))
    assert found == {(i, i, bits) for i, bits in planted.items() if bits <= 4}


def test_leaks_are_named():
    def table(prefix, hashes, digests, split):
        columns = {"uri": [f"{prefix}{i}" for i in range(len(hashes))], "split": [split] * len(hashes)}
        sizes = [None] * len(hashes)
        return pa.table({**columns, "sha256": digests, "phash": hashes, "num_bytes": sizes}, schema=leakage.SCHEMA)

    trained = table("/train/", [0b0, 0b1111_1111, None, 2**62], ["aa", "bb", None, "dd"], "train")
    tested = table("/test/", [0b1, 0b1111_0000_0000, 0b111_1111, None, 5 << 40], ["zz", "bb", "yy", None, "dd"], "test")
    found = leakage.find_leaks(tested, trained, 10)
    assert (found["num_exact"], found["num_near"]) == (2, 2)
    assert [(one["uri"], one["training_uri"], one["differing_bits"]) for one in found["examples"]] == [
        ("/test/1", "/train/1", None),
        ("/test/4", "/train/3", None),
        ("/test/0", "/train/0", 1),
        ("/test/2", "/train/1", 1),
    ]
    assert len(leakage.find_leaks(tested, trained, 1)["examples"]) == 1
