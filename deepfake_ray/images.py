"""Encoded bytes -> uint8 RGB pixels, or an `ImageError` that says why not. Knows neither Ray nor torch.

What a picture is, here: its first frame; upright (EXIF orientation applied); RGB; alpha composed over white, as a
browser shows it; 16 bits a channel shifted to 8. A file that ends early is an error, never half a picture.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from deepfake_ray.errors import ErrorCode, ImageError

Pixels = NDArray[np.uint8]
"""uint8 (H, W, 3) RGB."""


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


def sniff(data: bytes) -> str | None:
    """The format that the first bytes announce, in lower case; None if they announce none that is known here."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        brands = data[8:64]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")):
            return "heic"
    return None


_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
    (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cJXL ", "jxl"),
    (b"\x00\x00\x00\x0cjP  ", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"8BPS", "psd"),
)
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
    if not data:
        raise ImageError(ErrorCode.EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(ErrorCode.TOO_LARGE, f"{len(data)} bytes, over the limit of {limits.max_bytes}")
    kind = sniff(data)
    if kind is None:
        raise ImageError(ErrorCode.NOT_AN_IMAGE, f"begins with {data[:8].hex(' ')}, like no known image format")
    try:
        if kind == "jpeg":
            pixels, (width, height) = _decode_jpeg(data, limits, enough)
            return Decoded(pixels, kind, jpeg_quality(data), width, height)
        pixels = _decode_with_pillow(data, kind, limits)
        return Decoded(pixels, kind, None, pixels.shape[1], pixels.shape[0])
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(ErrorCode.TOO_LARGE, "the decoder ran out of memory") from error
    except Exception as error:
        # A damaged file makes decoders raise nearly anything (struct.error, IndexError, zlib.error ...).
        raise ImageError(_code_of(error, data, kind), _message_of(error)) from error


def _message_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _code_of(error: Exception, data: bytes, kind: str) -> ErrorCode:
    text = str(error).lower()
    ends_early = isinstance(error, EOFError) or any(word in text for word in _ENDS_EARLY)
    if ends_early or (kind == "jpeg" and b"\xff\xd9" not in data[-_TRAILER_BYTES:]):
        return ErrorCode.TRUNCATED
    return ErrorCode.DECODE_FAILED


_TRAILER_BYTES = 4096
"""Where an end marker is looked for: some writers add bytes after it."""
_ENDS_EARLY = ("truncated", "premature end", "unexpected end", "end of file", "not enough", "no image data")


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
    """What the first bytes say, not corrected for EXIF; None where they make no sense."""
    kind = sniff(data)
    try:
        if kind == "jpeg":
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            return Header(kind, width, height, jpeg_quality(data))
        if kind is None or kind not in _PILLOW or (kind == "heic" and not _register_heif()):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[_PILLOW[kind]]) as image:
                return Header(kind, *image.size, None)
    except Exception:  # as in `decode`; here a damaged file is of no interest
        return None


# --- JPEG


def _decode_jpeg(data: bytes, limits: Limits, enough: int | None) -> tuple[Pixels, tuple[int, int]]:
    """The pixels, and the width and height at full size."""
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    _check_pixels(width, height, limits)
    sides = enough or 0  # 0: whatever they are
    # strict: libjpeg's warnings ("premature end of data segment") are errors. Pillow and torchvision fill what is
    # missing with grey when a cut file still has an end marker.
    options = {"strict": True, "min_height": sides, "min_width": sides, "min_factor": 2 if enough else 1}
    if colorspace in ("CMYK", "YCCK"):
        inks = simplejpeg.decode_jpeg(data, "CMYK", **options)
        pixels = _cmyk_to_rgb(inks, inverted=data.find(b"Adobe", 0, _HEADER_BYTES) >= 0)
    else:
        pixels = simplejpeg.decode_jpeg(data, "RGB", **options)
    if data.find(b"Exif\x00\x00", 0, _HEADER_BYTES) >= 0:
        orientation = _exif_orientation(data)
        pixels = _upright(pixels, orientation)
        if orientation in _SIDEWAYS:
            width, height = height, width
    return pixels, (width, height)


_HEADER_BYTES = 1 << 16


def _cmyk_to_rgb(inks: Pixels, *, inverted: bool) -> Pixels:
    """uint8 (H, W, 4) inks -> RGB, without a colour profile, as Pillow does. Adobe's files store 255 - ink."""
    paper = inks if inverted else 255 - inks
    product = paper[..., :3].astype(np.uint16) * paper[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


def _exif_orientation(data: bytes) -> int:
    """1..8, 1 being upright; also for a file whose EXIF block is damaged: the picture itself is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


_SIDEWAYS = (5, 6, 7, 8)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation."""
    if orientation in _SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


_LUMINANCE_ZIGZAG = (
    "16 11 12 14 12 10 16 14 13 14 18 17 16 19 24 40 26 24 22 22 24 49 35 37 29 40 58 51 61 60 57 51 "
    "56 55 64 72 92 78 64 68 87 69 55 56 80 109 81 87 95 98 103 104 103 62 77 113 121 112 100 120 92 101 103 99"
)


@lru_cache(maxsize=1)
def _quality_tables() -> NDArray[np.int64]:
    """The Independent JPEG Group's luminance tables for the qualities 1..100: int64 (100, 64), zigzag order.

    The base table is Annex K.1 of ITU-T T.81; the scaling is that of libjpeg's jpeg_quality_scaling.
    """
    base = np.array([int(step) for step in _LUMINANCE_ZIGZAG.split()])
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((base[None] * scale + 50) // 100, 1, 255)


@lru_cache(maxsize=4096)
def _quality_of_table(table: bytes) -> int:
    steps = np.frombuffer(table, np.uint8).astype(np.int64)
    return int(np.abs(_quality_tables() - steps).sum(axis=1).argmin()) + 1


def jpeg_quality(data: bytes) -> int | None:
    """The IJG quality 1..100 whose luminance table is nearest to the file's; None if it has no 8-bit table."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == 0xDB:
            table, end = position + 4, position + 2 + length
            while table < end:
                precision, identity = data[table] >> 4, data[table] & 15
                if identity == 0 and precision == 0 and table + 65 <= len(data):
                    return _quality_of_table(data[table + 1 : table + 65])
                table += 129 if precision else 65
        if marker == 0xDA:
            return None
        position += 2 + length
    return None


# --- the other formats


def _decode_with_pillow(data: bytes, kind: str, limits: Limits) -> Pixels:
    if kind == "heic" and not _register_heif():
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "HEIC: install deepfake-ray[heic] to read it")
    if kind not in _PILLOW:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"{kind.upper()} is not read here")
    _check_end(data, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large or odd files; our own limits decide
        try:
            image = Image.open(io.BytesIO(data), formats=[_PILLOW[kind]])
        except Image.DecompressionBombError as error:
            raise ImageError(ErrorCode.TOO_LARGE, _message_of(error)) from error
        except UnidentifiedImageError as error:
            raise ImageError(ErrorCode.DECODE_FAILED, f"{kind} header cannot be read") from error
        except KeyError as error:
            raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"no {kind} decoder in this Pillow") from error
        with image:
            _check_pixels(*image.size, limits)
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def _register_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _check_end(data: bytes, kind: str) -> None:
    """Formats that say where they end must get there; Pillow shows what it has of some that do not."""
    if kind == "png":
        complete = b"IEND" in data[-_TRAILER_BYTES:]
    elif kind == "gif":
        complete = data.rstrip(b"\x00").endswith(b";")
    elif kind == "webp":
        complete = len(data) >= 8 + struct.unpack_from("<I", data, 4)[0]
    elif kind == "bmp":
        complete = len(data) >= struct.unpack_from("<I", data, 2)[0]
    else:
        return
    if not complete:
        raise ImageError(ErrorCode.TRUNCATED, f"{kind} file ends before its end marker or declared size")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: nearly every 16-bit picture would turn white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"32-bit pixels (mode {image.mode}) have no agreed range")
    if image.has_transparency_data:
        upper = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), upper).convert("RGB")
    return image.convert("RGB")
