"""What a file is, how large its picture is, which way up, and whether it is all there: read from the front, once.

JPEG, PNG and TIFF have modules of their own. Knows neither Ray nor torch.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.formats import foreign, jpeg, png, tiff
from deepfake_ray.images.formats.isobmff import walk_isobmff
from deepfake_ray.images.formats.jpeg import JpegFile
from deepfake_ray.images.formats.png import PngFile
from deepfake_ray.images.formats.tiff import TiffFile


@dataclass(slots=True)
class Container:
    """What a file says of its picture, before any of it is decoded."""

    format: str
    width: int
    height: int
    """As stored: an orientation of 5 to 8 swaps them. 0 x 0: only the decoder knows."""
    orientation: int = 1
    """EXIF's: 1 to 8, 1 is upright."""
    jpeg: JpegFile | None = None
    png: PngFile | None = None
    tiff: TiffFile | None = None
    picture: bytes | None = None
    """What a decoder is given in place of the file."""
    shortened: bytes | None = None
    """A copy that lacks its last bytes: if it decodes all the same, the file was never written to its end."""
    end: int = 0
    """Bytes that the file has to have at least, if it says so: less is checked after the size of the picture is."""

    def upright_size(self) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def sniff(data: bytes) -> str | None:
    """The format that the first bytes announce, in lower case; None if they announce none that is known here."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            # The two letters of a BMP file begin many a text, too.
            return None if name == "bmp" and foreign.is_text(data) else name
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
    (png.SIGNATURE, "png"),
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
_TAIL = 32
"""Zero bytes at the end of a coded picture that show that its rest was never written: coders leave a few at most."""
_UNREAD = 10
"""Bytes that a WebP bitstream may end with and its decoder does not need."""


def walk(data: bytes) -> Container:
    """What the file says.

    Raises:
        ImageError: not_an_image, unsupported_format, truncated or decode_failed.
    """
    kind = sniff(data)
    if kind is None:
        raise ImageError(ErrorCode.NOT_AN_IMAGE, f"this is {foreign.what(data)}")
    walker = _WALKERS.get(kind)
    if walker is None:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"{kind.upper()} is not read here")
    try:
        return walker(data)
    except (struct.error, IndexError) as error:
        raise ImageError(ErrorCode.TRUNCATED, f"the {kind} file ends within its header") from error


def _walk_jpeg(data: bytes) -> Container:
    found = jpeg.walk(data)
    return Container("jpeg", found.width, found.height, found.orientation, jpeg=found)


def _walk_png(data: bytes) -> Container:
    found = png.walk(data)
    return Container("png", found.width, found.height, found.orientation, png=found, picture=found.picture)


def _walk_tiff(data: bytes) -> Container:
    found = tiff.walk(data)
    return Container("tiff", found.width, found.height, found.orientation, tiff=found)


# --- GIF


_ZEROS = re.compile(rb"\x00*")


def _walk_gif(data: bytes) -> Container:
    """Blocks up to the trailer, or to where no block begins: what follows a whole frame does not matter.

    Viewers show files without a trailer, and with anything behind it (whats-in-a-gif issue 3, image-gif 138 and 237).
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position, size = 13 + _palette_bytes(flags), len(data)
    has_frame = False
    while position < size:
        block = data[position]
        if block == 0x3B:
            break
        if block == 0x21:  # an extension, with a label
            position = _behind_sub_blocks(data, position + 2)
        elif block == 0x2C:  # a frame, with a palette and the size of its codes
            if not has_frame:
                left, top, across, down = struct.unpack_from("<HHHH", data, position + 1)
                if (left and left >= width) or (top and top >= height):
                    raise ImageError(ErrorCode.DECODE_FAILED, "the frame of the gif file lies outside of its picture")
                width, height = max(width, left + across), max(height, top + down)  # as viewers do
                has_frame = True
            position = _behind_sub_blocks(data, position + 11 + _palette_bytes(data[position + 9]))
        elif block == 0:
            position = _end_of(_ZEROS, data, position)
            if position == size:
                raise ImageError(ErrorCode.TRUNCATED, "the rest of the gif file is zero bytes")
        elif has_frame:
            break
        else:
            raise ImageError(ErrorCode.DECODE_FAILED, "a block of the gif file is of no known kind")
    if not has_frame:
        raise ImageError(ErrorCode.TRUNCATED, "the gif file has no frame")
    return Container("gif", width, height)


def _end_of(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    found = pattern.match(data, position)
    return position if found is None else found.end()


def _palette_bytes(flags: int) -> int:
    return 6 << (flags & 7) if flags & 0x80 else 0


def _behind_sub_blocks(data: bytes, position: int) -> int:
    while (length := data[position]) > 0:
        position += length + 1
    return position + 1


# --- BMP


_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_RLE = (1, 2)


def _walk_bmp(data: bytes) -> Container:
    """The pixel array fits: what the file says of its own size is nonsense in many (leptonica issue 381)."""
    offset, header = struct.unpack_from("<II", data, 10)
    if header not in _BMP_HEADERS:
        raise ImageError(ErrorCode.DECODE_FAILED, f"a bmp header of {header} bytes is of no known kind")
    compression = colours = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    if header >= 40:
        compression, _, _, _, colours = struct.unpack_from("<IIiiI", data, 30)
    if width <= 0 or height == 0 or bits not in (1, 2, 4, 8, 16, 24, 32):
        raise ImageError(ErrorCode.DECODE_FAILED, f"a bmp file of {width} x {height} pixels of {bits} bits")
    if compression not in (0, *_RLE, 3, 6):
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"bmp compression {compression} is not read here")
    palette = 0 if bits > 8 else (colours or 1 << bits) * (3 if header == 12 else 4)
    masks = {3: 12, 6: 16}.get(compression, 0) if header == 40 else 0
    start = offset or 14 + header + masks + palette
    if start < 14 + header:
        raise ImageError(ErrorCode.DECODE_FAILED, "the pixels of the bmp file begin within its header")
    needed = 2 if compression in _RLE else (width * bits + 31) // 32 * 4 * abs(height)
    return Container("bmp", width, abs(height), end=start + needed)


# --- WebP


def _walk_webp(data: bytes) -> Container:
    """RIFF chunks. A bitstream that ends in zero bytes may never have been written to its end.

    The last bytes of a black picture are zeros, too, but its decoder needs them (they are not more than it asks for).
    """
    if len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
        raise ImageError(ErrorCode.TRUNCATED, "the webp file ends before its declared size")
    size: tuple[int, int] | None = None
    orientation: int | None = None
    shortened: bytes | None = None
    has_picture = False
    for kind, start, end in _chunks(data, 12):
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            if end > len(data):
                raise ImageError(ErrorCode.TRUNCATED, "the webp file ends within its picture")
            if shortened is None and not any(data[max(start, end - _TAIL) : end]):
                shortened = _shortened_webp(data, kind, start, end)
            has_picture = True
        elif kind == b"EXIF" and orientation is None and data[12:16] == b"VP8X":  # simple files have none
            orientation = tiff.orientation_of(data[start:end])
        elif kind == b"\x00\x00\x00\x00" and size is not None and not has_picture:
            raise ImageError(ErrorCode.TRUNCATED, "the rest of the webp file is zero bytes")
        size = size or _webp_size(data, kind, start)
    if size is None or not has_picture:
        raise ImageError(ErrorCode.DECODE_FAILED, "the webp file has no picture")
    return Container("webp", *size, orientation or 1, shortened=shortened)


def _shortened_webp(data: bytes, kind: bytes, start: int, end: int) -> bytes | None:
    """The bitstream that ends a chunk, as a file of its own, without its last bytes."""
    if kind == b"ANMF":
        parts = [part for part in _chunks(data, start + 16, end) if part[0] in (b"VP8 ", b"VP8L")]
        if not parts:
            return None
        kind, start, end = parts[0]
    stream = data[start : end - _UNREAD]
    stream += bytes(len(stream) & 1)
    return b"RIFF" + struct.pack("<I", 12 + len(stream)) + b"WEBP" + kind + struct.pack("<I", len(stream)) + stream


def _chunks(data: bytes, position: int, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk's content."""
    if end is None:
        end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while position + 8 <= end:
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        yield kind, position + 8, position + 8 + length
        position += 8 + length + (length & 1)


def _webp_size(data: bytes, kind: bytes, start: int) -> tuple[int, int] | None:
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[start + 4 : start + 7], "little"), 1 + int.from_bytes(
            data[start + 7 : start + 10], "little"
        )
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, start + 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, start + 1)
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    return None


def _walk_avif(data: bytes) -> Container:
    return Container("avif", 0, 0, picture=walk_isobmff(data, _TAIL))


def _walk_heic(data: bytes) -> Container:
    return Container("heic", 0, 0, picture=walk_isobmff(data, _TAIL))


_WALKERS = {
    "jpeg": _walk_jpeg,
    "png": _walk_png,
    "gif": _walk_gif,
    "bmp": _walk_bmp,
    "tiff": _walk_tiff,
    "webp": _walk_webp,
    "avif": _walk_avif,
    "heic": _walk_heic,
}
