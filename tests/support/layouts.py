"""Files put together by hand: segments, chunks and directories in places and layouts that no encoder here writes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


# --- JPEG


def segment(marker, content):
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def exif(orientation, order="<"):
    """A TIFF directory with the orientation, behind another entry."""
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 7, 0) + struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    return mark + struct.pack(order + "IH", 8, 2) + entries + bytes(4)


def segments(jpeg):
    """(start, marker) of each segment up to the first scan."""
    position, found = 2, []
    while jpeg[position + 1] != 0xDA:
        found.append((position, jpeg[position + 1]))
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return [*found, (position, 0xDA)]


def without_segments(jpeg, marker):
    edges = [start for start, _ in segments(jpeg)]
    kept = [jpeg[a:b] for a, b in zip(edges, [*edges[1:], len(jpeg)], strict=True) if jpeg[a + 1] != marker]
    return jpeg[:2] + b"".join(kept)


# --- PNG


def chunk(kind, content, crc=None):
    found = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", found)


def chunks(png):
    """(kind, content) of each chunk."""
    position, found = 8, []
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        found.append((png[position + 4 : position + 8], png[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def png(parts):
    """A file of (kind, content) or whole chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(part if isinstance(part, bytes) else chunk(*part) for part in parts)


def png_of(samples, colour, transparent=b""):
    """uint8 or uint16 (H, W, C) -> a PNG of that colour type."""
    height, width = samples.shape[:2]
    depth = 8 * samples.itemsize
    rows = samples.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
    body = zlib.compress(b"".join(b"\x00" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    more = [(b"tRNS", transparent)] if transparent else []
    return png([(b"IHDR", header), *more, (b"IDAT", body), (b"IEND", b"")])


# --- BMP


def bmp(pixels, alpha, header=108):
    """uint8 (H, W, 3), one alpha for all -> a BMP of 32 bits with masks for each channel."""
    height, width = pixels.shape[:2]
    rows = np.dstack([pixels[..., ::-1], np.full((height, width), alpha, np.uint8)])[::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, 32, 3, len(rows), 2835, 2835, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs"
    head = head.ljust(header, b"\x00")
    return b"BM" + struct.pack("<IHHI", 14 + header + len(rows), 0, 0, 14 + header) + head + rows


# --- TIFF


def tiff(samples, bits, photometric, *, planar=False, order="<", rows_per_strip=None, deflate=False, more=()):
    """Unsigned (H, W, C) samples of so many bits -> a TIFF file whose directory lies behind the strips."""
    height, width, channels = samples.shape
    planes = [samples[..., k : k + 1] for k in range(channels)] if planar else [samples]
    step = rows_per_strip or height
    strips = [packed(plane[row : row + step], bits, order) for plane in planes for row in range(0, height, step)]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    offsets = (8 + np.cumsum([0, *map(len, strips[:-1])])).tolist()
    tags = [
        (256, width), (257, height), (258, *[bits] * channels), (259, 8 if deflate else 1), (262, photometric),
        (273, *offsets), (277, channels), (278, step), (279, *map(len, strips)), (284, 2 if planar else 1), *more,
    ]  # fmt: skip
    body = b"".join(strips)
    start = 8 + len(body)
    behind = start + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag, *values in sorted(tags):
        code, kind = ("I", 4) if tag in (273, 279) else ("H", 3)
        raw = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(raw) > 4:
            field = struct.pack(order + "I", behind + len(extra))
            extra += raw
        else:
            field = raw.ljust(4, b"\x00")
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + field
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    return (
        mark + struct.pack(order + "I", start) + body + struct.pack(order + "H", len(tags)) + entries + bytes(4) + extra
    )


def packed(samples, bits, order):
    """Rows of samples, each filled up to a whole byte: 16 bits in the file's order, others the highest bit first."""
    if bits == 16:
        return samples.astype(order + "u2").tobytes()
    rows = (samples.reshape(len(samples), -1, 1) >> np.arange(bits)[::-1]) & 1
    return b"".join(np.packbits(row.astype(np.uint8)).tobytes() for row in rows)


def photograph(height=48, width=64, seed=0):
    """uint8 (H, W, 3): ramps, noise, and corners that differ."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([40 + 150 * x / width, 200 - 140 * y / height, 60 + 90 * (x + y) / (width + height)], -1)
    picture[: height // 3, : width // 4] = (220, 40, 30)
    noise = np.random.default_rng(seed).normal(0, 4, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def of_all_kinds(seed=0):
    """name -> bytes of the same picture in every format and layout that is read; the name begins with the format."""
    pixels = photograph(seed=seed)
    image = Image.fromarray(pixels)
    grey, few, alpha = image.convert("L"), image.quantize(32), image.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.mgrid[0:48, 0:64][1].astype(np.uint8) * 4))
    deep = pixels.astype(np.uint16) * 257
    deep_grey = np.asarray(grey)[..., None].astype(np.uint16) * 257
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]}
    turned = b"Exif\x00\x00" + exif(6)
    files = {
        "jpeg-baseline": encode(image, "JPEG", quality=90),
        "jpeg-420": encode(image, "JPEG", quality=60, subsampling=2),
        "jpeg-progressive": encode(image, "JPEG", progressive=True),
        "jpeg-grey": encode(grey, "JPEG"),
        "jpeg-cmyk": encode(image.convert("CMYK"), "JPEG"),
        "jpeg-restarts": encode(image, "JPEG", restart_marker_rows=1),
        "jpeg-turned": encode(image, "JPEG", exif=turned),
        "png-rgb": encode(image, "PNG"),
        "png-alpha": encode(alpha, "PNG"),
        "png-palette": encode(few, "PNG"),
        "png-palette-transparent": encode(few, "PNG", transparency=3),
        "png-bit": encode(image.convert("1"), "PNG"),
        "png-grey16": png_of(deep_grey, 0),
        "png-grey16-transparent": png_of(deep_grey, 0, struct.pack(">H", deep_grey[0, 0, 0])),
        "png-rgb16": png_of(deep, 2),
        "png-rgb16-transparent": png_of(deep, 2, struct.pack(">HHH", *deep[0, 0].tolist())),
        "png-turned": encode(image, "PNG", exif=turned),
        "gif-still": encode(few, "GIF"),
        "gif-animated": encode(few, "GIF", **frames),
        "gif-transparent": encode(few, "GIF", transparency=3),
        "bmp-rgb": encode(image, "BMP"),
        "bmp-palette": encode(few, "BMP"),
        "bmp-bit": encode(image.convert("1"), "BMP"),
        "bmp-alpha-0": bmp(pixels, 0),
        "bmp-alpha-255": bmp(pixels, 255, 124),
        "tiff-rgb": encode(image, "TIFF"),
        "tiff-lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encode(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encode(image, "TIFF", compression="jpeg"),
        "tiff-cmyk": encode(image.convert("CMYK"), "TIFF"),
        "tiff-palette": encode(few, "TIFF"),
        "tiff-bit": encode(image.convert("1"), "TIFF"),
        "tiff-grey12": tiff(deep_grey >> 4, 12, 1),
        "tiff-grey16": tiff(deep_grey, 16, 1, order=">", rows_per_strip=16),
        "tiff-grey16-inverted": tiff(65535 - deep_grey, 16, 0),
        "tiff-rgb16": tiff(deep, 16, 2),
        "tiff-rgb16-planar": tiff(deep, 16, 2, planar=True),
        "webp-lossy": encode(image, "WEBP", quality=80),
        "webp-lossless": encode(image, "WEBP", lossless=True),
        "webp-alpha": encode(alpha, "WEBP", lossless=True),
        "webp-animated": encode(image, "WEBP", **frames),
        "webp-turned": encode(image, "WEBP", lossless=True, exif=turned),
        "avif-rgb": encode(image, "AVIF", quality=80),
        "avif-alpha": encode(alpha, "AVIF", quality=80),
        "avif-turned": encode(image, "AVIF", quality=80, exif=turned),
    }  # fmt: skip
    return files
