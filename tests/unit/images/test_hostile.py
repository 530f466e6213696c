import io
import os
import subprocess
import sys

import hostile
import numpy as np
import pytest
from checkout import ROOT
from PIL import Image

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.decode import Limits, decode

LIMITS = Limits(max_bytes=10_000_000, max_pixels=100_000_000)
CODES_OF_DAMAGE = (
    ErrorCode.TRUNCATED, ErrorCode.DECODE_FAILED, ErrorCode.TOO_LARGE, ErrorCode.UNSUPPORTED_FORMAT,
)  # fmt: skip


def cases(generate):
    return [pytest.param(data, id=name) for name, data in generate()]


def code_of(data):
    try:
        image = decode(data, LIMITS)
    except ImageError as error:
        return error.code
    assert image.pixels.shape == (image.height, image.width, 3)
    return None


def test_the_valid_ones_are_read():
    files = hostile.valid()
    assert len(files) == 13
    for name, data in files.items():
        image = decode(data, LIMITS)
        assert (image.width, image.height, image.format) == (120, 96, hostile.kind_of(name))


@pytest.mark.parametrize("data", cases(hostile.truncated))
def test_no_pixels_from_a_file_that_ends_early(data):
    assert code_of(data) in (ErrorCode.TRUNCATED, ErrorCode.DECODE_FAILED)


@pytest.mark.parametrize("data", cases(hostile.flipped))
def test_changed_bits_give_what_another_decoder_shows_or_a_code(data):
    code = code_of(data)
    if code is not None:
        assert code in CODES_OF_DAMAGE
        return
    found = decode(data, LIMITS).pixels
    try:
        with Image.open(io.BytesIO(data)) as image:
            theirs = np.asarray(image.convert("RGB"))
    except Exception:
        return  # Pillow refuses more: metadata
    assert theirs.shape == found.shape
    assert np.abs(theirs.astype(int) - found).mean() <= 1


@pytest.mark.parametrize("data", cases(hostile.wrong_headers))
def test_a_signature_makes_no_image(data):
    assert code_of(data) in (ErrorCode.TRUNCATED, ErrorCode.DECODE_FAILED)


@pytest.mark.parametrize("data", cases(hostile.huge))
def test_declared_sizes_are_checked_before_memory_is_taken(data):
    assert code_of(data) == ErrorCode.TOO_LARGE


MEASURED = """
import io, resource, sys
sys.path.insert(0, "tests/support")
import hostile
from PIL import Image
from deepfake_ray.errors import ImageError
from deepfake_ray.images.decode import Limits, decode
files = dict(hostile.huge())
decode(hostile.valid()["png"], Limits(max_bytes=10**7, max_pixels=10**8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data in files.items():
    try:
        decode(data, Limits(max_bytes=10**7, max_pixels=10**8))
    except ImageError as error:
        assert error.code == "too_large", (name, error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_files_that_declare_too_much_take_no_memory():
    """In a process of its own: decoders take memory that no Python tool sees."""
    command = [sys.executable, "-c", MEASURED]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50  # MiB; the picture of the smallest would take 400
