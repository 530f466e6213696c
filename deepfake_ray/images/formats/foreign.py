"""What files are that are no images: in words, for messages. Knows neither Ray nor torch."""

import codecs

_MAGIC = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or an Office document)"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x00\x00\x01\x00", "an icon (ICO), which is not read here"),
    (b"\x00\x00\x02\x00", "a cursor (CUR), which is not read here"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"FLV\x01", "a Flash video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"PAR1", "a Parquet table"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document"),
    (b"\x00\x00\x01\xba", "an MPEG video"),
    (b"\x00\x00\x01\xb3", "an MPEG video"),
    (b"DDS ", "a texture (DDS), which is not read here"),
    (b"#?RADIANCE", "a Radiance picture (HDR), which is not read here"),
    (b"v/1\x01", "an OpenEXR picture, which is not read here"),
    (b"qoif", "a QOI picture, which is not read here"),
    (b"icns", "an icon (ICNS), which is not read here"),
    (b"FORM", "an IFF file"),
    (b"{\\rtf", "an RTF document"),
    (b"%!PS", "a PostScript document"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer; fetch the file itself with git lfs pull"),
)
_RIFF = {b"WAVE": "a WAV sound", b"AVI ": "an AVI video"}
_LOOKED_AT = 1024
"""Bytes from the front that decide."""


def what(data: bytes) -> str:
    """What the bytes are, as the end of "this is ...". Never repeats any of them."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], "a RIFF file that is no WebP picture")
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "an MP4 or QuickTime video (or sound)"
    if data[257:262] == b"ustar":
        return "a tar archive"
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "a Netpbm picture (PPM, PGM, PBM), which is not read here"
    if not data.strip(b"\x00"):
        return "nothing but zero bytes"
    text = _text(data)
    return "in no known format" if text is None else _kind_of_text(text.lstrip().lower())


def is_text(data: bytes) -> bool:
    """Whether the file begins as a text: no image does."""
    return _text(data) is not None


def _text(data: bytes) -> str | None:
    """The first characters, if they are some."""
    head = data[:_LOOKED_AT]
    encoding = "utf-8"
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            encoding = name
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None
    return text if text and all(c.isprintable() or c.isspace() for c in text) else None


def _kind_of_text(text: str) -> str:
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page (an error page, saved in the picture's place?)"
    if "<svg" in text:
        return "an SVG drawing, which is not read here"
    if text.startswith("<?xml") or (text.startswith("<") and text.rstrip()[1:2].isalpha()):
        return "an XML document (an object store's error?)" if "<html" not in text else "an HTML page"
    if text.startswith(("{", "[")):
        return "a text (JSON?)"
    if text.startswith("data:image/"):
        return "a data: address, not the picture's bytes"
    return "a text"
