"""Encoded bytes -> uint8 RGB pixels, or an `ImageError` that says why not. Knows neither Ray nor torch.

What a picture is, here: its first frame; upright (EXIF orientation applied); RGB; alpha composed over white, as a
browser shows it; 16 bits a channel shifted to 8. A file that ends early is an error, never half a picture; damaged
metadata never cost the picture. `containers` reads what the file says of itself, decoders only the pixels.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.formats import jpeg, jpeg_pixels, tiff
from deepfake_ray.images.formats.containers import Container, walk
from deepfake_ray.images.formats.pixels import Pixels as Pixels
from deepfake_ray.images.formats.pixels import upright
from deepfake_ray.images.formats.png import PngFile


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest image that is read."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True)
class Decoded:
    """A picture and what its file said of it."""

    pixels: Pixels
    format: str
    jpeg_quality: int | None
    width: int
    height: int
    """Of the upright picture at its full size, which `pixels` may be smaller than."""


_PILLOW = {
    "png": "PNG",
    "gif": "GIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "webp": "WEBP",
    "avif": "AVIF",
    "heic": "HEIF",
}


def decode(data: bytes, limits: Limits, enough: int | None = None) -> Decoded:
    """Decode one encoded image.

    Args:
        data: the file.
        limits: beyond which nothing is decoded.
        enough: pixels that each side has to have at least; a JPEG may be decoded at a reduced scale then, never below
            its own size. None: at its full size.

    Raises:
        ImageError: with one of the codes empty, too_large, not_an_image, unsupported_format, truncated,
            decode_failed.
    """
    return _decode(data, limits, enough or 0, grey=False)


def decode_grey(data: bytes, limits: Limits, enough: int) -> NDArray[np.uint8]:
    """The luminance, uint8 (H, W), of the picture that `decode` gives; of a JPEG sooner, at a reduced scale.

    Raises:
        ImageError: as `decode`.
    """
    pixels = _decode(data, limits, enough, grey=True).pixels
    return pixels[..., 0] if pixels.shape[2] == 1 else np.asarray(Image.fromarray(pixels).convert("L"))


def _decode(data: bytes, limits: Limits, enough: int, *, grey: bool) -> Decoded:
    if not data:
        raise ImageError(ErrorCode.EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(ErrorCode.TOO_LARGE, f"{len(data)} bytes, over the limit of {limits.max_bytes}")
    try:
        file = walk(data)
        _check_pixels(file.width, file.height, limits)
        if file.end > len(data):
            raise ImageError(ErrorCode.TRUNCATED, f"the {file.format} file ends before its pixels do")
        if file.jpeg is not None:
            jpeg.check(file.jpeg)
            pixels = upright(jpeg_pixels.decode(data, file.jpeg, enough, grey=grey), file.orientation)
            return Decoded(pixels, "jpeg", file.jpeg.quality, *file.upright_size())
        if file.tiff is not None:
            tiff.check(file.tiff)
        if file.tiff is not None and tiff.is_ours(file.tiff):
            pixels = upright(tiff.decode(file.tiff), file.orientation)
        else:
            pixels = _decode_with_pillow(data, file, limits)
        return Decoded(pixels, file.format, None, pixels.shape[1], pixels.shape[0])
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(ErrorCode.TOO_LARGE, "the decoder ran out of memory") from error
    except Exception as error:
        # A damaged file makes decoders raise nearly anything (struct.error, IndexError, zlib.error ...). Their texts
        # are left out: they repeat bytes of the file.
        code = ErrorCode.TRUNCATED if isinstance(error, EOFError) else ErrorCode.DECODE_FAILED
        raise ImageError(code, f"the decoder refuses it ({type(error).__name__})") from error


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            ErrorCode.TOO_LARGE, f"{width} x {height} pixels, over the limit of {limits.max_pixels} pixels"
        )


@dataclass(frozen=True)
class Header:
    """What a file says of its picture, without its pixels."""

    format: str
    width: int
    height: int
    jpeg_quality: int | None


def header(data: bytes) -> Header | None:
    """What the file says of its upright picture, as `decode` would; None where it makes no sense."""
    try:
        file = walk(data)
        if file.jpeg is not None:
            return Header("jpeg", *file.upright_size(), file.jpeg.quality)
        if file.width:
            return Header(file.format, *file.upright_size(), None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _opened(data, file) as image:
                width, height = image.size
                swapped = _orientation(image) >= 5
                return Header(file.format, *((height, width) if swapped else (width, height)), None)
    except Exception:  # as in `decode`; here a damaged file is of no interest
        return None


# --- Pillow


def _opened(data: bytes, file: Container) -> Image.Image:
    if file.format == "heic" and not _register_heif():
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "HEIC: install deepfake-ray[heic] to read it")
    try:
        return Image.open(io.BytesIO(data if file.picture is None else file.picture), formats=[_PILLOW[file.format]])
    except Image.DecompressionBombError as error:
        raise ImageError(ErrorCode.TOO_LARGE, "more pixels than Pillow decodes") from error
    except UnidentifiedImageError as error:
        if file.tiff is not None:
            raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"TIFF of {file.tiff.layout()} is not read here") from error
        raise ImageError(ErrorCode.DECODE_FAILED, f"the {file.format} header cannot be read") from error
    except KeyError as error:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"no {file.format} decoder in this Pillow") from error


def _decodes(data: bytes, kind: str) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=[_PILLOW[kind]]) as image:
            image.load()
    except Exception:  # whatever the decoder raises
        return False
    return True


def _register_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _orientation(image: Image.Image) -> int:
    """Of AVIF and HEIC, whose boxes Pillow reports as EXIF; 1 where it cannot be read."""
    try:
        found = image.getexif().get(tiff.ORIENTATION, 1)
    except Exception:  # damaged EXIF: anything
        return 1
    return found if found in range(1, 9) else 1


def _decode_with_pillow(data: bytes, file: Container, limits: Limits) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large or odd files; our own limits decide
        with _opened(data, file) as image:
            _check_pixels(*image.size, limits)
            orientation = file.orientation if file.width else _orientation(image)
            if file.tiff is not None:
                orientation = 1  # Pillow turns these itself
            pixels = np.array(_to_rgb(image, file))
        if file.shortened is not None and _decodes(file.shortened, file.format):
            raise ImageError(ErrorCode.TRUNCATED, f"the rest of the {file.format} picture is zero bytes")
        return upright(pixels, orientation)


def _to_rgb(image: Image.Image, file: Container) -> Image.Image:
    image.load()
    if file.png is not None and file.png.transparent:
        if file.png.depth == 16:
            return _with_transparent_samples(image, file)
        image.info["transparency"] = _transparency(file.png)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: nearly every 16-bit picture would turn white.
        return Image.fromarray(_upper_bits(np.asarray(image), file)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"32-bit pixels (mode {image.mode}) have no agreed range")
    if image.has_transparency_data and not _is_alpha_unused(image, file):
        upper = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), upper).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_bits(samples: NDArray[np.uint16], file: Container) -> NDArray[np.uint8]:
    """The upper 8 bits of grey samples, inverted where white is zero: Pillow does neither."""
    bits = 16 if file.tiff is None else file.tiff.bits
    grey = (samples >> (bits - 8)).astype(np.uint8)
    return 255 - grey if file.tiff is not None and file.tiff.photometric == tiff.WHITE_IS_ZERO else grey


def _is_alpha_unused(image: Image.Image, file: Container) -> bool:
    """A BMP whose alpha is 0 throughout is opaque to all who show it (ImageSharp issues 369 and 581)."""
    return file.format == "bmp" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def _transparency(file: PngFile) -> int | tuple[int, ...]:
    """The transparent samples as Pillow stores samples: of 8 bits. It compares them with what the file says."""
    scale = 255 // ((1 << file.depth) - 1)
    samples = tuple(sample * scale for sample in file.transparent)
    return samples[0] if len(samples) == 1 else samples


def _with_transparent_samples(image: Image.Image, file: Container) -> Image.Image:
    """White where the samples of a 16-bit PNG are those that its tRNS chunk names; Pillow compares 8 bits of them."""
    assert file.png is not None
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)[..., None]
        pixels = np.repeat((samples >> 8).astype(np.uint8), 3, axis=2)
    else:
        pixels = np.array(image.convert("RGB"))
        with Image.open(io.BytesIO(file.png.picture), formats=["PNG"]) as again:
            # The same bytes, read as if their order were the other: the lower half of each sample.
            again.tile = [again.tile[0]._replace(args="RGB;16L")]
            samples = pixels.astype(np.uint16) << 8 | np.asarray(again)
    pixels[(samples == np.array(file.png.transparent)).all(axis=-1)] = 255
    return Image.fromarray(pixels)
