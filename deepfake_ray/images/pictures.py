"""Pictures that somebody else opened with Pillow -> pixels, by the rules of `decode`."""

import io

import numpy as np
from PIL import Image, ImageOps

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.decode import Limits, Pixels, decode

AS_IT_IS = ("1", "L", "LA", "P", "RGBA", "I;16", "I;16B")
"""Modes that a PNG holds without loss; what `decode` makes of them holds for them: transparency, 16 bits."""


def pixels_of(picture: Image.Image, limits: Limits) -> Pixels:
    """The frame that it is at, upright: uint8 (H, W, 3) RGB.

    Raises:
        ImageError: it has more pixels than the limit, no agreed range, or its file is damaged.
    """
    if picture.width * picture.height > limits.max_pixels:
        raise ImageError(
            ErrorCode.TOO_LARGE,
            f"{picture.width} x {picture.height} pixels, over the limit of {limits.max_pixels} pixels",
        )
    if picture.mode in ("I", "F"):
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"32-bit pixels (mode {picture.mode}) have no agreed range")
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in ("PA", "La", "RGBa"):
            upright = upright.convert("RGBA")
        if upright.mode not in AS_IT_IS and not upright.has_transparency_data:
            return np.array(upright.convert("RGB"))
        file = io.BytesIO()
        upright.save(file, "PNG", compress_level=1)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file, read only now, makes Pillow raise nearly anything
        raise ImageError(ErrorCode.DECODE_FAILED, f"Pillow refuses it ({type(error).__name__})") from error
    return decode(file.getvalue(), Limits(max_bytes=1 << 62, max_pixels=limits.max_pixels)).pixels
