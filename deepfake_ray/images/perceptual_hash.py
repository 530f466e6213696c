"""Which pictures look alike: perceptual hashes."""

import numpy as np
from PIL import Image
from scipy.fft import dct

from deepfake_ray.errors import ImageError
from deepfake_ray.images.decode import Limits, decode_grey

SIDE = 32
"""Of the grey thumbnail that is hashed, in pixels."""


FREQUENCIES = 8


FLAT = 2.0
"""A thumbnail with a smaller standard deviation has no picture to compare."""


_LOW = dct(np.eye(SIDE), axis=0, norm="ortho")[:FREQUENCIES].astype(np.float32)


_WEIGHTS = 1 << np.arange(FREQUENCIES**2 - 1, dtype=np.uint64)


def perceptual_hash(data: bytes, limits: Limits) -> int | None:
    """63 bits that hardly change when a picture is re-saved or resized; None where there is no picture, or a flat one.

    The signs of the low frequencies of a 32 x 32 grey thumbnail, against their median (the DCT hash of Zauner 2010,
    "Implementation and benchmarking of perceptual image hash functions"). Mirrored, turned or cropped pictures have
    other hashes.
    """
    try:
        # Decoders can give a JPEG at an eighth of its size for a fraction of the time.
        picture = Image.fromarray(decode_grey(data, limits, 2 * SIDE))
    except ImageError:
        return None
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    if small.std() < FLAT:
        return None
    low = (_LOW @ small @ _LOW.T).reshape(-1)[1:]  # without the mean
    return int(_WEIGHTS[low > np.median(low)].sum())
