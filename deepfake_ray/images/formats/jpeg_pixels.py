"""A JPEG's pixels: harmless oddities are told from picture data that are missing or damaged. Knows no Ray or torch."""

import itertools
import re

import numpy as np
import simplejpeg

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.formats.jpeg import PROGRESSIVE, SOF3, JpegFile, Scan, is_refined, scans_of
from deepfake_ray.images.formats.pixels import Pixels

_END = b"\xff\xd9"


def decode(data: bytes, file: JpegFile, enough: int = 0, *, grey: bool = False) -> Pixels:
    """Pixels as they are stored, not turned.

    Args:
        data: the file.
        file: what `walk` found in it.
        enough: pixels that each side has to have at least, if a reduced scale will do; 0: the full size.
        grey: the luminance alone, for files that are not CMYK.

    Returns:
        uint8 (H, W, 3) RGB, or (H, W, 1).

    Raises:
        ImageError: truncated or decode_failed.
    """
    is_cmyk = len(file.components) == 4
    space = "CMYK" if is_cmyk else "GRAY" if grey else "RGB"
    has_scans = file.process in PROGRESSIVE or data[file.scan_header] < len(file.components)
    if has_scans and not is_refined(data, file):
        raise ImageError(ErrorCode.TRUNCATED, "the jpeg file ends before its last scan")
    try:
        pixels = _strictly(data, space, enough)
    except ValueError as error:
        pixels = _leniently(data, file, space, enough, error)
    return _cmyk_to_rgb(pixels, inverted=file.is_adobe) if is_cmyk else pixels


def _strictly(data: bytes, space: str, enough: int = 0) -> Pixels:
    """Decode; libjpeg's warnings are errors: it fills what is missing with grey, and warns."""
    factor = 2.0 if enough and space != "GRAY" else 1.0
    return simplejpeg.decode_jpeg(data, space, strict=True, min_height=enough, min_width=enough, min_factor=factor)


def _cmyk_to_rgb(inks: Pixels, *, inverted: bool) -> Pixels:
    """uint8 (H, W, 4) inks -> RGB, without a colour profile, as Pillow does. Adobe's files store 255 - ink."""
    paper = inks if inverted else 255 - inks
    product = paper[..., :3].astype(np.uint16) * paper[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


# --- what viewers show all the same


def _leniently(data: bytes, file: JpegFile, space: str, enough: int, error: ValueError) -> Pixels:
    """The picture of a file that libjpeg refuses or warns of, if all of its picture data are there and whole.

    Viewers do not mind stray bytes between segments and before the end marker, a strange JFIF version, nonsense in the
    scan header of a sequential file, or a missing end marker (jpeg-decoder issues 43 and 130, yolov5 3450,
    generative_inpainting 188, libjpeg-turbo 163). What a copy without these says, and no other warning, decides:
    libjpeg reports its last one only, and an earlier one may be worse.
    """
    scans = list(itertools.islice(scans_of(data, file), _MENDED_SCANS + 1))
    is_ended = scans[-1] is not None
    whole = [scan for scan in scans if scan is not None]
    failed = _failure(error, is_ended=is_ended)
    if len(whole) > _MENDED_SCANS or file.process == SOF3:
        raise failed from error
    mended = _needed_header(data, file)
    try:
        for number, scan in enumerate(whole):
            begin = scan.start if number == 0 else whole[number - 1].end
            mended = _with_scan(mended, _mended_scan(data, file, begin, scan), space)
        return _strictly(mended + _END, space, enough)
    except ValueError as worse:
        raise _failure(worse, is_ended=is_ended) from worse


_MENDED_SCANS = 32
"""Of a file that is decoded up to each of them; encoders write ten or so."""
_MOST_STRAY = 16
"""Bytes before a marker that may be anything: more have to be of one kind, or they may be the picture's."""
_SWALLOWED = 8
"""Bytes that libjpeg may have taken in before it sees that they are not the picture's."""
_ENDED = ("Premature end of JPEG file", "Corrupt JPEG data: premature end of data segment")
"""libjpeg's texts JWRN_JPEG_EOF and JWRN_HIT_MARKER, which hold nothing of the file."""
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
"""JWRN_EXTRANEOUS_DATA: where to cut. Whether the cut was right, decoding decides."""


def _failure(error: ValueError, *, is_ended: bool) -> ImageError:
    text = str(error)
    code = ErrorCode.TRUNCATED if text in _ENDED or not is_ended else ErrorCode.DECODE_FAILED
    return ImageError(code, text.splitlines()[0][:200] if text else "the decoder gave no reason")


def _needed_header(data: bytes, file: JpegFile) -> bytes:
    """What the picture needs of all before the first scan, mended."""
    copied = bytearray(data[: file.scan])
    for place, content in file.mended:
        copied[place : place + len(content)] = content
    edges = [0, *itertools.chain.from_iterable(file.spare), file.scan]
    return b"".join(copied[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))


def _mended_scan(data: bytes, file: JpegFile, begin: int, scan: Scan) -> bytes:
    """A scan with the tables before it; a sequential one is of all coefficients, whatever its header says."""
    copied = bytearray(data[begin : scan.end])
    if file.process not in PROGRESSIVE:
        spectrum = scan.header - begin + 1 + 2 * data[scan.header]
        copied[spectrum : spectrum + 3] = b"\x00\x3f\x00"  # "Invalid SOS parameters for sequential JPEG"
    return bytes(copied)


def _with_scan(before: bytes, scan: bytes, space: str) -> bytes:
    """`before` and a scan with its tables, without stray bytes behind its coded data.

    Raises:
        ValueError: the scan is damaged or not whole.
    """
    both = before + scan
    try:
        _strictly(both + _END, space)
        return both
    except ValueError as error:
        found = _EXTRANEOUS.fullmatch(str(error))
        if found is None:
            raise
        number = int(found[1])
        kept, stray = both[:-number], both[-number:]
        _strictly(kept + _END, space)
        if not _is_stray(kept, stray, space):
            raise
        return kept


def _is_stray(kept: bytes, stray: bytes, space: str) -> bool:
    """Whether bytes behind the last block are none of the picture's.

    A changed bit often makes libjpeg read past or short of what follows, silently, until there are bytes over. Then
    they are coded data: many, of all kinds. And the picture's last byte is not filled up with ones, as encoders do.
    """
    zeros = stray.count(0)
    if len(stray) > _MOST_STRAY and stray.count(stray[0]) < 0.9 * len(stray) and zeros < len(stray) / 8:
        return False
    return _is_filled_with_ones(kept, space)


def _is_filled_with_ones(kept: bytes, space: str) -> bool:
    """Whether the bits behind the last block's are ones, up to the byte's end."""
    for _ in range(_SWALLOWED):
        if not _decodes(kept[:-1], space):
            break
        kept = kept[:-1]
    if kept[-2:] == b"\xff\x00":
        return True
    last = kept[-1]
    ones = (~last & (last + 1)).bit_length() - 1  # how many, from the lowest bit on
    changed = last ^ (1 << ones)
    other = kept[:-1] + (b"\xff\x00" if changed == 0xFF else bytes([changed])) + _END
    try:
        return not np.array_equal(_strictly(other, space), _strictly(kept + _END, space))
    except ValueError:
        return True


def _decodes(kept: bytes, space: str) -> bool:
    try:
        _strictly(kept + _END, space)
    except ValueError:
        return False
    return True
