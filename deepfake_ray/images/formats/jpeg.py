"""JPEG: a walk along the segments, and what they say. Knows neither Ray nor torch."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.formats.tiff import orientation_of

SOF3, SOF9, SOF10, DHT, JPG, DAC = 0xC3, 0xC9, 0xCA, 0xC4, 0xC8, 0xCC
SOI, EOI, SOS, DQT, DNL, DRI = 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD
APP0, APP1, APP2, APP14, APP15, COM = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_DECODED = (0xC0, 0xC1, 0xC2, SOF3, SOF9, SOF10)
"""The processes that libjpeg-turbo decodes: sequential, progressive, lossless, and two of them arithmetic-coded."""
PROGRESSIVE = (0xC2, SOF10)
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_MARKER_BEHIND_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_SCANS_AT_MOST = 500
"""Each is one more pass over all pixels, of a few bytes maybe."""


@dataclass(slots=True)
class JpegFile:
    """What the segments before the first scan say."""

    width: int = 0
    height: int = 0
    process: int = 0
    """The frame's marker, SOF0 to SOF15."""
    precision: int = 8
    components: bytes = b""
    """Their identities."""
    is_adobe: bool = False
    """Whether it has Adobe's APP14: then CMYK is stored as 255 - ink."""
    orientation: int = 1
    quality: int | None = None
    scan: int = 0
    """Where the first scan's marker (SOS) is."""
    scan_header: int = 0
    """Where the number of that scan's components is."""
    spare: list[tuple[int, int]] = field(default_factory=list)
    """Stretches that the picture does not need: between segments, and colour profiles, which libjpeg warns of."""
    mended: list[tuple[int, bytes]] = field(default_factory=list)
    """Bytes that libjpeg warns of, though no decoder needs them, and what they should be."""


def walk(data: bytes) -> JpegFile:
    """What the segments up to the first scan say, wherever they are and however long they are.

    EXIF lies behind any length of XMP or colour profile, and either may hold the words Exif and Adobe (exif_reader
    issue 5, docx-editor 733, WeasyPrint 2179, sharp 1649).

    Raises:
        ImageError: truncated, decode_failed or unsupported_format.
    """
    file = JpegFile()
    position, transform, size = 2, 0, len(data)
    try:
        while True:
            marker = data[position + 1]
            if data[position] != 0xFF or marker == 0 or marker == 0xFF:
                position = _next_marker(data, position, file)
                marker = data[position + 1]
            body = position + 2
            if 0xD0 <= marker <= EOI or marker == 0x01:  # these have no length
                if marker == EOI:
                    raise ImageError(ErrorCode.DECODE_FAILED, "the jpeg file has no scan before its end marker")
                position = body
                continue
            end = body + (data[body] << 8 | data[body + 1])
            if marker == SOS:
                file.scan, file.scan_header = position, body + 2
                break
            if end > size:
                raise IndexError
            if end < body + 2:
                raise ImageError(ErrorCode.DECODE_FAILED, "a jpeg segment is shorter than its own length")
            start, position = position, end
            if marker == DHT:
                continue
            if marker == DQT:
                if file.quality is None:
                    file.quality = _quality(data, body + 2, end)
            elif 0xC0 <= marker <= 0xCF and marker not in (JPG, DAC):
                _read_frame(file, marker, data[body + 2 : end])
            elif marker == APP0:
                if data[body + 2 : body + 7] == b"JFIF\x00" and end >= body + 16 and data[body + 7] != 1:
                    file.mended.append((body + 7, b"\x01"))  # "unknown JFIF revision number"
            elif marker == APP1:
                if file.orientation == 1 and data[body + 2 : body + 8] == b"Exif\x00\x00":
                    file.orientation = orientation_of(data[body + 8 : end])
            elif marker == APP2:
                file.spare.append((start, end))
            elif marker == APP14 and data[body + 2 : body + 7] == b"Adobe" and end >= body + 14:
                file.is_adobe = True
                transform = body + 13
        components = data[file.scan_header]
    except IndexError as error:
        raise ImageError(ErrorCode.TRUNCATED, "the jpeg file ends before its picture begins") from error
    if not file.process or not components:
        raise ImageError(ErrorCode.DECODE_FAILED, "the jpeg file has no frame header before its first scan")
    if transform and data[transform] > 2:  # "Unknown Adobe color transform code", taken for YCbCr or YCCK
        file.mended.append((transform, b"\x02" if len(file.components) == 4 else b"\x01"))
    return file


def _next_marker(data: bytes, position: int, file: JpegFile) -> int:
    """Where the next marker is, behind bytes that belong to no segment and bytes that fill up."""
    found = _MARKER.search(data, position)
    if found is None:
        raise IndexError
    if found.start() > position:
        file.spare.append((position, found.start()))
    return found.end() - 2


def _read_frame(file: JpegFile, marker: int, content: bytes) -> None:
    if len(content) < 6 or len(content) < 6 + 3 * content[5]:
        raise ImageError(ErrorCode.DECODE_FAILED, "the jpeg frame header is too short")
    if file.process:
        raise ImageError(ErrorCode.DECODE_FAILED, "the jpeg file has two frame headers")
    file.process, file.precision = marker, content[0]
    file.height, file.width = content[1] << 8 | content[2], content[3] << 8 | content[4]
    file.components = content[6 : 6 + 3 * content[5] : 3]


def check(file: JpegFile) -> None:
    """Raise unsupported_format for what libjpeg-turbo, as it is built here, does not decode."""
    if file.precision != 8:
        problem = f"of {file.precision} bits a sample"
    elif file.process not in _DECODED:
        problem = f"of process SOF{file.process - 0xC0} (hierarchical, or lossless and arithmetic-coded)"
    elif len(file.components) not in (1, 3, 4):
        problem = f"of {len(file.components)} components"
    else:
        return
    raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"a JPEG {problem} is not read here")


# --- the quality


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


def _quality(data: bytes, table: int, end: int) -> int | None:
    """The IJG quality 1..100 whose luminance table is nearest to the first 8-bit one of a DQT segment."""
    while table + 65 <= end:
        precision, identity = data[table] >> 4, data[table] & 15
        if identity == 0 and precision == 0:
            return _quality_of_table(data[table + 1 : table + 65])
        table += 129 if precision else 65
    return None


# --- the scans


class Scan(NamedTuple):
    """Where a scan lies."""

    start: int
    """Where its marker is; the tables before it belong to it too."""
    header: int
    """Where the number of its components is."""
    end: int
    """Behind its coded data."""


def scans_of(data: bytes, file: JpegFile) -> Iterator[Scan | None]:
    """The scans, in order; a None at the end if the end marker is missing."""
    start, header = file.scan, file.scan_header
    while True:
        coded = header - 2 + (data[header - 2] << 8 | data[header - 1])
        found = _MARKER_BEHIND_SCAN.search(data, coded)
        yield Scan(start, header, len(data) if found is None else found.start())
        while found is not None and data[found.end() - 1] not in (EOI, SOS):
            marker, body = data[found.end() - 1], found.end()
            if marker not in (DHT, DAC, DQT, DRI, DNL, COM) and not APP0 <= marker <= APP15:
                found = None
            else:
                found = _MARKER.search(data, body + int.from_bytes(data[body : body + 2], "big"))
        if found is None or found.end() + 3 > len(data):
            if found is None or data[found.end() - 1] != EOI:
                yield None
            return
        if data[found.end() - 1] == EOI:
            return
        start, header = found.start(), found.end() + 2


_REFINEMENTS = tuple(bytes((bits,)) * 64 for bits in range(16))
"""How many low bits are still to come, of each coefficient: if of all the same number."""


def is_refined(data: bytes, file: JpegFile) -> bool:
    """Whether the scans bring every bit of every coefficient: libjpeg shows what it has, without a word."""
    missing = {identity: bytearray(b"\x0e" * 64) for identity in file.components}
    for index, scan in enumerate(scans_of(data, file)):
        if scan is None:
            continue
        if index == _SCANS_AT_MOST:
            raise ImageError(ErrorCode.DECODE_FAILED, f"a jpeg file of more than {_SCANS_AT_MOST} scans")
        number = data[scan.header]
        names = data[scan.header + 1 : scan.header + 1 + 2 * number : 2]
        first, last, bits = 0, 63, 0
        if file.process in PROGRESSIVE:
            first, last, bits = data[scan.header + 1 + 2 * number : scan.header + 4 + 2 * number]
        for identity in names:
            if identity in missing and first <= last <= 63:
                missing[identity][first : last + 1] = _REFINEMENTS[bits & 15][first : last + 1]
    return not any(map(any, missing.values()))
