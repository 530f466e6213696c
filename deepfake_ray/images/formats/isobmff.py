"""The boxes of AVIF and HEIC files (ISO base media file format). Knows neither Ray nor torch."""

from collections.abc import Iterator

from deepfake_ray.errors import ErrorCode, ImageError

_CODED = (b"av01", b"hvc1")


def walk_isobmff(data: bytes, tail: int) -> bytes:
    """The file without its EXIF: which way up the picture is, its boxes say (irot, imir), and decoders heed those.

    Decoders refuse the whole file for an EXIF block that they cannot read.

    Args:
        data: the file.
        tail: so many zero bytes at the end of a coded picture show that its rest was never written.

    Raises:
        ImageError: truncated, if a box or a coded picture is not all there.
    """
    meta: tuple[int, int] | None = None
    media: tuple[int, int] | None = None
    for kind, start, end in _boxes(data, 0, len(data)):
        if end > len(data):
            raise ImageError(ErrorCode.TRUNCATED, "the file ends within one of its boxes")
        if kind == b"meta" and meta is None:
            meta = start + 4, end  # behind version and flags
        elif kind == b"mdat":
            media = start, end
    if meta is None:
        # A sequence alone: its samples lie in the media box.
        if media is None or not any(data[max(media[0], media[1] - tail) : media[1]]):
            raise ImageError(ErrorCode.TRUNCATED, "the file has no picture, or the rest of it is zero bytes")
        return data
    kinds: dict[int, tuple[bytes, int]] = {}
    extents: list[tuple[int, int, int]] = []
    for kind, start, end in _boxes(data, *meta):
        if kind == b"iinf":
            kinds = dict(_items(data, start, min(end, len(data))))
        elif kind == b"iloc":
            extents = list(_extents(data, start))
    for item, start, end in extents:
        if kinds.get(item, (b"", 0))[0] in _CODED:
            if end > len(data):
                raise ImageError(ErrorCode.TRUNCATED, "the file ends within its picture")
            if not any(data[max(start, end - tail) : end]):
                raise ImageError(ErrorCode.TRUNCATED, "the rest of the picture is zero bytes")
    exif = [place for kind, place in kinds.values() if kind == b"Exif"]
    if not exif:
        return data
    without = bytearray(data)
    for place in exif:
        without[place : place + 4] = b"skip"
    return bytes(without)


def _boxes(data: bytes, position: int, limit: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each box's content."""
    while position + 8 <= limit:
        size, kind, header = _number(data, position, 4), data[position + 4 : position + 8], 8
        if size == 1:
            size, header = _number(data, position + 8, 8), 16
        elif size == 0:
            size = limit - position
        if size < header:
            raise ImageError(ErrorCode.TRUNCATED, "a box of the file is shorter than its own header")
        yield kind, position + header, position + size
        position += size


def _number(data: bytes, position: int, size: int) -> int:
    return int.from_bytes(data[position : position + size], "big")


def _items(data: bytes, start: int, end: int) -> Iterator[tuple[int, tuple[bytes, int]]]:
    """Identity -> kind, and where the kind stands, of each item (box iinf)."""
    for kind, place, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
        if kind == b"infe" and data[place] >= 2:
            width = 2 if data[place] == 2 else 4
            where = place + 4 + width + 2
            yield _number(data, place + 4, width), (data[where : where + 4], where)


def _extents(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Identity, start and end of the parts of each item that lie in the file itself (box iloc)."""
    version, sizes = data[start], _number(data, start + 4, 2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    wide = 4 if version == 2 else 2
    position = start + 6 + wide
    for _ in range(_number(data, start + 6, wide)):
        item = _number(data, position, wide)
        position += wide
        method = 0
        if version in (1, 2):
            method = data[position + 1] & 15
            position += 2
        position += 2  # where the data are
        base = _number(data, position, base_size)
        position += base_size
        number = _number(data, position, 2)
        position += 2
        for _ in range(number):
            position += index_size
            first = base + _number(data, position, offset_size)
            length = _number(data, position + offset_size, length_size)
            position += offset_size + length_size
            if method == 0:
                yield item, first, first + length
            if position > len(data) or not offset_size + length_size:
                break
        if position > len(data):
            raise ImageError(ErrorCode.TRUNCATED, "the file ends within the list of its items")
