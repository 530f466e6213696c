"""Broken and odd files, made by mutating valid ones of every format that is read."""

import io
import struct
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image

SAVED = {
    "jpeg": {"quality": 90},
    "jpeg-progressive": {"format": "jpeg", "progressive": True},
    "jpeg-420": {"format": "jpeg", "subsampling": 2, "quality": 50},
    "png": {},
    "png-palette": {"format": "png"},
    "gif": {},
    "webp": {"quality": 80},
    "webp-lossless": {"format": "webp", "lossless": True},
    "bmp": {},
    "tiff": {},
    "tiff-deflate": {"format": "tiff", "compression": "tiff_adobe_deflate"},
    "tiff-lzw": {"format": "tiff", "compression": "tiff_lzw"},
    "avif": {"quality": 60},
}
END_MARKERS = {
    "jpeg": b"\xff\xd9",
    "png": struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")),
    "gif": b"\x00;",
}


def kind_of(name):
    return SAVED[name].get("format", name)


@lru_cache
def valid(seed=0):
    """name -> bytes: a photograph-like picture of 120 x 96 in every format."""
    noise = np.random.default_rng(seed).normal(0, 12, (96, 120, 3))
    ramp = np.linspace(0, 200, 120)[None, :, None] + np.linspace(0, 40, 96)[:, None, None]
    image = Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
    found = {}
    for name, options in SAVED.items():
        data = io.BytesIO()
        picture = image.quantize(64) if name in ("png-palette", "gif") else image
        picture.save(data, **{"format": name, **options})
        found[name] = data.getvalue()
    return found


def truncated():
    """(name, bytes): every format cut at each tenth, as it is and with what makes it look whole."""
    for name, data in valid().items():
        kind = kind_of(name)
        for tenth in range(1, 10):
            cut = data[: len(data) * tenth // 10]
            yield f"{name}-cut-{tenth}", cut
            if kind in END_MARKERS:
                yield f"{name}-cut-{tenth}-ended", cut + END_MARKERS[kind]
            if kind == "webp":
                yield f"{name}-cut-{tenth}-ended", cut[:4] + struct.pack("<I", len(cut) - 8) + cut[8:]
            if kind == "bmp":
                yield f"{name}-cut-{tenth}-ended", cut[:2] + struct.pack("<I", len(cut)) + cut[6:]


def flipped(per_format=8, seed=1):
    """(name, bytes): some bits changed after the signature."""
    rng = np.random.default_rng(seed)
    for name, data in valid().items():
        for number in range(per_format):
            changed = bytearray(data)
            for position in rng.integers(16, len(data), 1 + 4 * (number % 3)):
                changed[position] ^= 1 << rng.integers(8)
            yield f"{name}-flip-{number}", bytes(changed)


def wrong_headers():
    """(name, bytes): the signature of one format before the content of another; and signatures alone."""
    files = valid()
    heads = {name: data[:12] for name, data in files.items() if kind_of(name) == name}
    for name, head in heads.items():
        other = files["png" if name != "png" else "jpeg"]
        yield f"{name}-head-only", head
        yield f"{name}-head-on-other", head + other[len(head) :]
        yield f"{name}-head-and-zeros", head + bytes(5000)


def huge():
    """(name, bytes): small files that declare 60,000 x 60,000 pixels or more."""
    files = valid()

    def patched(name, position, value):
        data = bytearray(files[name])
        data[position : position + len(value)] = value
        return bytes(data)

    size = struct.pack(">II", 60_000, 60_000)
    header = b"IHDR" + size + files["png"][24:29]
    png = bytearray(files["png"])
    png[12:33] = header + struct.pack(">I", zlib.crc32(header))
    yield "png-huge", bytes(png)
    frame = files["jpeg"].index(b"\xff\xc0")
    yield "jpeg-huge", patched("jpeg", frame + 5, struct.pack(">HH", 60_000, 60_000))
    yield "gif-huge", patched("gif", 6, struct.pack("<HH", 60_000, 60_000))
    yield "bmp-huge", patched("bmp", 18, struct.pack("<ii", 60_000, 60_000))
    # A flat picture of 400 million pixels in some 50 KB: what it declares is true.
    bomb = io.BytesIO()
    row = zlib.compressobj(9)
    body = b"".join(row.compress(bytes(20_001)) for _ in range(20_000)) + row.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    bomb.write(b"\x89PNG\r\n\x1a\n")
    for kind, content in chunks:
        bomb.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    yield "png-bomb", bomb.getvalue()
