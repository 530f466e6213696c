"""TIFF directories: those of TIFF files, and of the EXIF blocks in all other formats. Knows neither Ray nor torch."""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.formats.pixels import Pixels

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANES = 273, 277, 278, 279, 284
ORIENTATION, PREDICTOR, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT = 274, 317, 324, 325, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Of the types of whole numbers: BYTE, SHORT, LONG, LONG8."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True)
class Directory:
    """The first directory (IFD) of a TIFF file or EXIF block."""

    data: bytes
    order: str
    """For `struct`: < or >."""
    entries: dict[int, tuple[str, int, int]]
    """Tag -> (code of `struct`, number of values, where they are): those of whole numbers."""

    def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The values of a tag; `default` if it is not there.

        Raises:
            ImageError: truncated, if they lie behind the end of the file.
        """
        if tag not in self.entries:
            return default
        code, number, start = self.entries[tag]
        if start + number * struct.calcsize("=" + code) > len(self.data):
            raise ImageError(ErrorCode.TRUNCATED, f"the values of TIFF tag {tag} lie behind the end of the file")
        return struct.unpack_from(f"{self.order}{number}{code}", self.data, start)

    def value(self, tag: int, default: int) -> int:
        """The first value of a tag, or `default`."""
        return (*self.values(tag), default)[0]


def directory(data: bytes, *, may_be_cut: bool = False) -> Directory:
    """The first directory; of one that `may_be_cut`, the entries that are there.

    Raises:
        ImageError: truncated or decode_failed.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        raise ImageError(ErrorCode.DECODE_FAILED if order is None else ErrorCode.TRUNCATED, "no TIFF header")
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    head, entry, inline = ("Q", "HHQ", 12) if is_big else ("I", "HHI", 8)
    count_code, size = ("Q", 20) if is_big else ("H", 12)
    try:
        (start,) = struct.unpack_from(order + head, data, 8 if is_big else 4)
        (number,) = struct.unpack_from(order + count_code, data, start)
        first = start + struct.calcsize("=" + count_code)
        if may_be_cut:
            number = max(0, min(number, (len(data) - first) // size))
        if first + number * size > len(data):
            raise ImageError(ErrorCode.TRUNCATED, "the TIFF directory ends behind the file")
        entries = {}
        for place in range(first, first + number * size, size):
            tag, kind, length = struct.unpack_from(order + entry, data, place)
            where = place + inline
            if length * _SIZES.get(kind, 1) > size - inline:
                (where,) = struct.unpack_from(order + head, data, where)
            if kind in _CODES and tag not in entries:
                entries[tag] = (_CODES[kind], length, where)
    except struct.error as error:
        raise ImageError(ErrorCode.TRUNCATED, "the TIFF directory lies behind the end of the file") from error
    return Directory(data, order, entries)


def orientation_of(block: bytes) -> int:
    """The orientation 1..8 in an EXIF block (a TIFF file without a picture); 1, upright, also where it is damaged."""
    block = block.removeprefix(b"Exif\x00\x00")
    try:
        found = directory(block, may_be_cut=True).value(ORIENTATION, 1)
    except ImageError:
        return 1
    return found if 1 <= found <= 8 else 1


@dataclass(frozen=True, kw_only=True)
class TiffFile:
    """What a TIFF file says of its first picture."""

    directory: Directory
    width: int
    height: int
    orientation: int
    bits: int
    """Of each sample."""
    photometric: int
    samples: int
    is_planar: bool
    compression: int

    def layout(self) -> str:
        """For messages."""
        planes = "planar" if self.is_planar else "chunky"
        return (
            f"{self.samples} x {self.bits} bits, photometric interpretation {self.photometric}, {planes}, "
            f"compression {self.compression}"
        )


def walk(data: bytes) -> TiffFile:
    """What the first directory says.

    Raises:
        ImageError: truncated, decode_failed, or unsupported_format for samples that are no whole numbers of one size.
    """
    found = directory(data)
    orientation = found.value(ORIENTATION, 1)
    samples = found.value(SAMPLES, 1)
    bits = found.values(BITS, (1,)) or (1,)
    file = TiffFile(
        directory=found,
        width=found.value(WIDTH, 0),
        height=found.value(HEIGHT, 0),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        bits=bits[0],
        photometric=found.value(PHOTOMETRIC, BLACK_IS_ZERO),
        samples=samples,
        is_planar=samples > 1 and found.value(PLANES, 1) == 2,
        compression=found.value(COMPRESSION, 1),
    )
    if file.width < 1 or file.height < 1:
        raise ImageError(ErrorCode.DECODE_FAILED, f"a TIFF file of {file.width} x {file.height} pixels")
    if len(set(bits)) > 1 or not set(found.values(SAMPLE_FORMAT, (1,))) <= {1, 4}:
        raise ImageError(
            ErrorCode.UNSUPPORTED_FORMAT, "TIFF samples of several sizes, signed or floating, have no agreed range"
        )
    _check_extents(file, len(data))
    return file


def _check_extents(file: TiffFile, size: int) -> None:
    """The strips or tiles lie within the file, and hold the whole picture where they are not compressed."""
    found = file.directory
    is_tiled = TILE_OFFSETS in found.entries
    offsets = np.array(found.values(TILE_OFFSETS if is_tiled else STRIP_OFFSETS), np.uint64)
    lengths = np.array(found.values(TILE_BYTES if is_tiled else STRIP_BYTES), np.uint64)
    if not offsets.size or (offsets < 8).any():
        raise ImageError(ErrorCode.DECODE_FAILED, "a TIFF file without strips or tiles behind its header")
    if file.compression == 1 and not is_tiled:
        number = -(-file.height // _rows_per_strip(file)) * (file.samples if file.is_planar else 1)
        if number != len(offsets):
            raise ImageError(ErrorCode.DECODE_FAILED, f"a TIFF file of {len(offsets)} strips needs {number}")
        rows = _rows_of_strips(file)
        # What it says of their lengths does not matter, as long as the picture is there.
        lengths = (rows * _row_bytes(file)).astype(np.uint64)
    if len(lengths) != len(offsets):
        raise ImageError(ErrorCode.DECODE_FAILED, f"{len(offsets)} TIFF strips or tiles have {len(lengths)} lengths")
    if (offsets > size).any() or (lengths > size - np.minimum(offsets, size)).any():
        raise ImageError(ErrorCode.TRUNCATED, "a TIFF strip or tile ends behind the file")


def _rows_per_strip(file: TiffFile) -> int:
    return max(1, min(file.directory.value(ROWS_PER_STRIP, file.height), file.height))


def _rows_of_strips(file: TiffFile) -> NDArray[np.int64]:
    """How many rows each strip holds: all the same, but for the last one of a plane."""
    step = _rows_per_strip(file)
    firsts = np.arange(0, file.height, step)
    return np.tile(np.minimum(step, file.height - firsts), file.samples if file.is_planar else 1)


def _row_bytes(file: TiffFile) -> int:
    """Of a row (of one plane), if it is not compressed."""
    samples = 1 if file.is_planar else file.samples
    if file.photometric == 6:  # YCbCr may be subsampled: at least this
        return (file.width * file.bits + 7) // 8
    return (file.width * samples * file.bits + 7) // 8


def is_ours(file: TiffFile) -> bool:
    """Whether `decode` reads it. Pillow reads the other layouts, but of these it gives wrong pixels, or none.

    16-bit WhiteIsZero comes negative, 12 bits come as the lower ones of 16, of 16-bit planes rows are repeated
    (Pillow issues 2610, 5178 and 5403, darktable 18815).
    """
    return (
        9 <= file.bits <= 16
        and file.compression == 1
        and TILE_OFFSETS not in file.directory.entries
        and (file.photometric, file.samples) in ((WHITE_IS_ZERO, 1), (BLACK_IS_ZERO, 1), (RGB, 3))
        and file.directory.value(FILL_ORDER, 1) == 1
    )


def check(file: TiffFile) -> None:
    """Raise unsupported_format for layouts that Pillow gets wrong without a word, if `decode` does not read them."""
    planes = file.is_planar and (file.samples == 2 or (file.bits > 8 and file.compression == 1))
    # Differences between samples are taken for samples: libtiff knows them for LZW, Deflate, Zstandard and LZMA alone.
    predicted = file.compression == _PACK_BITS and file.directory.value(PREDICTOR, 1) != 1
    if not is_ours(file) and (planes or predicted):
        problem = f"{file.layout()}{', predicted' if predicted else ''}"
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"TIFF of {problem} is not read here")


_PACK_BITS = 32773
_ROWS_AT_ONCE = 64


def decode(file: TiffFile) -> Pixels:
    """Samples of 9 to 16 bits that are not compressed, grey or RGB: their upper 8 bits, as they lie in the file."""
    planes = file.samples if file.is_planar else 1
    channels = file.samples // planes
    row_bytes = _row_bytes(file)
    rows = np.frombuffer(_strips(file), np.uint8)[: planes * file.height * row_bytes]
    rows = rows.reshape(planes * file.height, row_bytes)
    if file.bits == 16:
        high = rows[:, 1 if file.directory.order == "<" else 0 :: 2]
    else:
        high = np.empty((len(rows), file.width * channels), np.uint8)
        used = file.width * channels * file.bits
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            bits = np.unpackbits(rows[first : first + _ROWS_AT_ONCE], axis=1)[:, :used]
            upper = bits.reshape(len(bits), -1, file.bits)[..., :8]
            high[first : first + _ROWS_AT_ONCE] = np.packbits(upper, axis=-1)[..., 0]
    stored = high.reshape(planes, file.height, file.width, channels)
    pixels = stored.transpose(1, 2, 0, 3).reshape(file.height, file.width, file.samples)
    if file.photometric == WHITE_IS_ZERO:
        pixels = 255 - pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (file.height, file.width, 3)))


def _strips(file: TiffFile) -> bytes:
    data, lengths = file.directory.data, (_rows_of_strips(file) * _row_bytes(file)).tolist()
    offsets = file.directory.values(STRIP_OFFSETS)
    return b"".join(data[start : start + length] for start, length in zip(offsets, lengths, strict=True))
