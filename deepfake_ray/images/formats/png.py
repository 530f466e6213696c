"""PNG chunks, walked from the front. Knows neither Ray nor torch."""

import struct
import zlib
from dataclasses import dataclass

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.formats.tiff import orientation_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
"""EXIF as ImageMagick writes it: a text chunk of hexadecimal digits."""
_TEXT_BYTES = 1 << 20
"""Of a text that is inflated: only EXIF is looked at."""


@dataclass(frozen=True, kw_only=True)
class PngFile:
    """What a PNG file says of its picture."""

    width: int
    height: int
    depth: int
    """Bits of a sample."""
    colour: int
    transparent: tuple[int, ...]
    """The samples (one or three) that are transparent; empty: none, or a palette's."""
    orientation: int
    picture: bytes
    """The file without what the picture does not need: metadata cannot cost the picture then.

    Decoders refuse whole files for the CRC of a comment or for a text that is long (Pillow issues 5528, 5978, 8363).
    """


def walk(data: bytes) -> PngFile:
    """What the chunks say, up to the end marker; what lies behind it is no part of the picture.

    Raises:
        ImageError: truncated or decode_failed, if a chunk that the picture needs (IHDR, PLTE, IDAT, IEND) is not there
            or does not have its checksum.
    """
    view = memoryview(data)
    needed = [[0, 8]]  # stretches
    header: bytes | None = None
    transparency, exif, profile = b"", b"", b""
    has_palette = has_pixels = False
    position, size = 8, len(data)
    while True:
        if position + 12 > size:
            raise ImageError(ErrorCode.TRUNCATED, "the png file ends before its end marker (IEND)")
        length = int.from_bytes(view[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if end > size:
            raise ImageError(ErrorCode.TRUNCATED, "the png file ends within a chunk")
        content = view[position + 8 : end - 4]
        if kind in _CRITICAL:
            if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise ImageError(ErrorCode.DECODE_FAILED, f"the checksum of the png chunk {kind.decode()} is wrong")
            _append(needed, position, end)
            if kind == b"IHDR" and header is None:
                header = bytes(content)
            has_palette = has_palette or kind == b"PLTE"
            has_pixels = has_pixels or kind == b"IDAT"
            if kind == b"IEND":
                break
        elif kind == b"tRNS" and header is not None and not (transparency or has_pixels):
            if _fits(header, length, has_palette=has_palette):
                transparency = bytes(content)
                if header[8] < 16:  # of 16 bits Pillow compares 8: `decode` makes up for it
                    _append(needed, position, end)
        elif kind == b"eXIf" and not exif:
            exif = bytes(content[:_TEXT_BYTES])
        elif kind in (b"tEXt", b"zTXt") and bytes(content[:21]) in _PROFILES and not profile:
            profile = _profile(kind, bytes(content[:_TEXT_BYTES]))
        elif kind == b"CgBI":
            raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "a png file for iOS (CgBI) is not read here")
        position = end
    if header is None or len(header) < 13 or not has_pixels:
        raise ImageError(ErrorCode.DECODE_FAILED, "the png file has no header (IHDR) or no pixels (IDAT)")
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    transparent: tuple[int, ...] = ()
    if colour in (GREY, RGB) and transparency and 1 <= depth <= 16:
        samples = struct.unpack(f">{len(transparency) // 2}H", transparency)
        transparent = tuple(sample & (1 << depth) - 1 for sample in samples)
    return PngFile(
        width=width,
        height=height,
        depth=depth,
        colour=colour,
        transparent=transparent,
        orientation=orientation_of(exif or profile) if exif or profile else 1,
        picture=data if needed == [[0, size]] else b"".join(view[start:end] for start, end in needed),
    )


def _append(stretches: list[list[int]], start: int, end: int) -> None:
    """Add a stretch, to the last one where it follows it."""
    if stretches[-1][1] == start:
        stretches[-1][1] = end
    else:
        stretches.append([start, end])


def _fits(header: bytes, length: int, *, has_palette: bool) -> bool:
    """Whether a tRNS chunk has the length that the colour type asks for, and stands behind the palette."""
    if len(header) < 13:
        return False
    return {GREY: length == 2, RGB: length == 6, PALETTE: has_palette and 1 <= length <= 256}.get(header[9], False)


def _profile(kind: bytes, content: bytes) -> bytes:
    """The EXIF block in a text chunk; empty if it is damaged."""
    try:
        text = content.split(b"\x00", 1)[1]
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], _TEXT_BYTES)
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except (zlib.error, ValueError, IndexError):
        return b""
