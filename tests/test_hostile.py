import hostile
import pytest

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images import Limits, decode

LIMITS = Limits(max_bytes=10_000_000, max_pixels=100_000_000)


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
def test_changed_bits_give_a_picture_or_a_code(data):
    assert code_of(data) in (None, ErrorCode.TRUNCATED, ErrorCode.DECODE_FAILED, ErrorCode.TOO_LARGE)


@pytest.mark.parametrize("data", cases(hostile.wrong_headers))
def test_a_signature_makes_no_image(data):
    assert code_of(data) in (ErrorCode.TRUNCATED, ErrorCode.DECODE_FAILED)


@pytest.mark.parametrize("data", cases(hostile.huge))
def test_declared_sizes_are_checked_before_memory_is_taken(data):
    import tracemalloc

    tracemalloc.start()
    assert code_of(data) == ErrorCode.TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
