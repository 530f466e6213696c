"""Files fuzzed by structure: no hang, no crash, and no picture that differs from what a second decoder shows.

    python benchmarks/fuzz_images.py --files 2000 --seed 0

Prints a table of outcomes by format, and each file that was decoded otherwise than a second decoder does. OpenCV
(opencv-python-headless) and libvips (pyvips) are asked where they are installed, and Pillow; pictures count as the same
up to a mean difference of 2 grey levels. Files are decoded in a process of their own, which may die. Exit code 1 if
anything hung, crashed or differed.
"""

import argparse
import multiprocessing
import random
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import layouts

TOLERANCE = 2.0
PATIENCE_S = 20


# --- making files


def pieces(data, kind):
    """The file cut where its parts begin: segments, chunks, blocks, boxes."""
    if kind == "jpeg":
        edges = [start for start, _ in layouts.segments(data)]
    elif kind == "png":
        edges = _edges(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4], "big"))
    elif kind == "webp":
        edges = _edges(data, 12, lambda at: 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1 & ~1))
    elif kind == "avif":
        edges = _edges(data, 0, lambda at: int.from_bytes(data[at : at + 4], "big"))
    elif kind == "tiff":
        start = int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
        edges = [8, *range(start, len(data), 12)]
    elif kind == "bmp":
        edges = [14, int.from_bytes(data[10:14], "little")]
    else:
        edges = [13, *(at for at in range(13, len(data) - 1) if data[at] in b"\x21\x2c" and data[at - 1] == 0)]
    edges = [0, *edges, len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]


def _edges(data, start, length):
    edges = []
    while start < len(data):
        edges.append(start)
        start += max(length(start), 1)
    return edges


def odd_part(kind, rng):
    """A part that belongs there, but says what it should not."""
    words = rng.choice([b"Exif\x00\x00", b"Adobe", b"premature end of file, truncated", b"II*\x00", b"\x00" * 40])
    body = words + rng.randbytes(rng.choice([0, 5, 300, 70_000 if kind != "jpeg" else 60_000]))
    if kind == "jpeg":
        return layouts.segment(rng.choice([0xE0, 0xE1, 0xE2, 0xEE, 0xFE]), body)
    if kind == "png":
        return layouts.chunk(rng.choice([b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"pHYs", b"tRNS", b"abCd"]), body)
    if kind == "webp":
        return rng.choice([b"EXIF", b"XMP ", b"ICCP", b"JUNK"]) + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)
    if kind == "avif":
        return struct.pack(">I", 8 + len(body)) + b"free" + body
    if kind == "gif":
        return b"\x21\xfe" + b"".join(bytes((len(body[i : i + 255]),)) + body[i : i + 255] for i in range(0, 600, 255) if body[i:]) + b"\0"
    return body[:100]


def cut(data, kind, rng):
    return data[: rng.randrange(1, len(data))]


def cut_with_an_end(data, kind, rng):
    end = {"jpeg": b"\xff\xd9", "png": layouts.chunk(b"IEND", b""), "gif": b"\x00;"}.get(kind, b"")
    return cut(data, kind, rng) + end


def zero_tail(data, kind, rng):
    return data[: rng.randrange(len(data) // 10, len(data) - 40)].ljust(len(data), b"\0")


def random_tail(data, kind, rng):
    return data + rng.choice([rng.randbytes(rng.randrange(1, 9000)), bytes(rng.randrange(1, 9000)), data])


def flipped(data, kind, rng):
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        changed[rng.randrange(2, len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flipped_header(data, kind, rng):
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2])):
        changed[rng.randrange(2, min(len(data), 200))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def other_length(data, kind, rng):
    """A part says another length."""
    parts = pieces(data, kind)
    index = rng.randrange(len(parts))
    part = bytearray(parts[index])
    place = {"jpeg": 2, "png": 0, "webp": 4, "avif": 0, "tiff": 4, "gif": 1, "bmp": rng.choice([2, 10, 14, 18, 22, 28, 34])}[kind]
    width = 2 if kind == "jpeg" else 4
    value = rng.choice([bytes(width), b"\xff" * width, rng.randbytes(width), None])
    if kind == "bmp":
        part, index = bytearray(data), 0
        parts = [data]
    if len(part) >= place + width:
        old = bytes(part[place : place + width])
        part[place : place + width] = value or bytes((old[0], *old[1:-1], (old[-1] + rng.choice([-2, -1, 1, 2])) & 255))
    parts[index] = bytes(part)
    return b"".join(parts)


def dropped(data, kind, rng):
    parts = pieces(data, kind)
    del parts[rng.randrange(1, len(parts))]
    return b"".join(parts)


def doubled(data, kind, rng):
    parts = pieces(data, kind)
    index = rng.randrange(1, len(parts))
    return b"".join([*parts[:index], parts[index], *parts[index:]])


def swapped(data, kind, rng):
    parts = pieces(data, kind)
    a, b = rng.randrange(1, len(parts)), rng.randrange(1, len(parts))
    parts[a], parts[b] = parts[b], parts[a]
    return b"".join(parts)


def inserted(data, kind, rng):
    parts = pieces(data, kind)
    parts.insert(rng.randrange(1, len(parts) + 1), odd_part(kind, rng))
    made = b"".join(parts)
    return made[:4] + struct.pack("<I", len(made) - 8) + made[8:] if kind == "webp" else made


def stray(data, kind, rng):
    parts = pieces(data, kind)
    index = rng.randrange(1, len(parts) + 1)
    more = rng.choice([bytes(rng.randrange(1, 300)), rng.randbytes(rng.randrange(1, 12)), b"\xff" * rng.randrange(1, 300)])
    if kind == "jpeg" and rng.random() < 0.5:
        return data[:-2] + more + data[-2:]
    return b"".join([*parts[:index], more, *parts[index:]])


def mended_checksums(data):
    """A PNG whose checksums are right again, so that decoders look further."""
    found, position = [data[:8]], 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + length]
        found.append(data[position : position + 4] + body + struct.pack(">I", zlib.crc32(body)))
        position += 12 + length
    return b"".join(found) + data[position:]


MUTATIONS = (
    cut, cut_with_an_end, zero_tail, random_tail, flipped, flipped, flipped_header, other_length, dropped, doubled,
    swapped, inserted, inserted, stray,
)  # fmt: skip


def files(number, seed):
    """(name, bytes)."""
    rng = random.Random(seed)
    sources = list(layouts.of_all_kinds(seed).items())
    for index in range(number):
        source, data = sources[index % len(sources)]
        kind = source.split("-")[0]
        mutation = rng.choice(MUTATIONS)
        made = mutation(data, kind, rng)
        if kind == "png" and mutation in (flipped, flipped_header) and rng.random() < 0.5:
            made = mended_checksums(made)
        yield f"{index:05} {source} {mutation.__name__}", made


# --- decoding them


def second_opinions(data, is_jpeg):
    """(name, pixels) of the decoders that read it. Those that share none of our code are asked first."""
    found = []
    for name, read in (("opencv", with_opencv), ("libvips", with_vips), ("pillow", with_pillow)):
        try:
            found.append((name, read(data)))
        except Exception:
            continue
    return found


def over_white(pixels):
    """uint8 (H, W, 1 to 4) RGB -> RGB."""
    if pixels.shape[2] in (2, 4):
        share = pixels[..., -1:].astype(float) / 255
        pixels = np.rint(pixels[..., :-1] * share + 255 * (1 - share)).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def with_opencv(data):
    import cv2

    raw = np.frombuffer(data, np.uint8)
    found = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    if found.ndim < 3 or found.shape[2] < 4:
        found = cv2.imdecode(raw, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if found.dtype == np.uint16:
        found = (found >> 8).astype(np.uint8)
    if data[:2] == b"BM" and found.shape[2] == 4 and not found[..., 3].any():
        found = found[..., :3]  # alpha that is 0 throughout is none
    order = [2, 1, 0, 3][: found.shape[2]]
    return over_white(found[..., order])


def with_vips(data):
    import pyvips

    image = pyvips.Image.new_from_buffer(data, "", fail_on="error").autorot()
    if image.format == "ushort":
        image = (image >> 8).cast("uchar")
    if image.interpretation == "cmyk":
        raise ValueError("through a profile")
    return over_white(image.colourspace("srgb").cast("uchar").numpy().reshape(image.height, image.width, -1))


def with_pillow(data):
    import io

    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):
        return over_white((np.asarray(image) >> 8).astype(np.uint8)[..., None])
    return over_white(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")))


def serve(connection):
    """Decode what comes; answer with the outcome, then with how far each other decoder is from it."""
    from deepfake_ray.errors import ImageError
    from deepfake_ray.images import Limits, decode

    limits = Limits(max_bytes=1 << 26, max_pixels=1 << 24)
    while True:
        data = connection.recv_bytes()
        try:
            image = decode(data, limits)
            connection.send(("ok", image.format))
        except ImageError as error:
            connection.send((str(error.code), error.message))
            continue
        connection.send(
            [
                (name, float(np.abs(pixels.astype(int) - image.pixels).mean()) if pixels.shape == image.pixels.shape else -1)
                for name, pixels in second_opinions(data, image.format == "jpeg")
            ]
        )


class Worker:
    """A process that may die."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self):
        """What it says; "hang" or "crash"."""
        try:
            return self.connection.recv() if self.connection.poll(PATIENCE_S) else "hang"
        except EOFError:
            return "crash"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that differ, hang or crash")
    options = parser.parse_args()
    table, exceptions, alone = Counter(), [], Counter()
    worker = Worker()
    for name, data in files(options.files, options.seed):
        source = name.split()[1].split("-")[0]
        worker.connection.send_bytes(data)
        found = worker.answer()
        if isinstance(found, tuple):
            outcome = found[0]
            opinions = worker.answer() if outcome == "ok" else []
            if isinstance(opinions, str):
                outcome, opinions, worker = f"{opinions} of another decoder", [], Worker()
        else:
            outcome, opinions, worker = found, [], Worker()
        if outcome == "ok":
            asked = [one for one in opinions if one[0] != "pillow"] or opinions
            if not asked:
                alone[name.split(maxsplit=1)[1]] += 1
            elif not any(0 <= difference <= TOLERANCE for _, difference in asked):
                outcome = "differs"
        table[source, outcome] += 1
        if outcome in ("differs", "hang", "crash"):
            exceptions.append(f"{name}: {outcome} {[(n, round(d, 1)) for n, d in opinions]}")
            if options.keep:
                options.keep.mkdir(exist_ok=True, parents=True)
                (options.keep / name.replace(" ", "_")).write_bytes(data)
    outcomes = sorted({outcome for _, outcome in table})
    print("format".ljust(8), *(outcome.rjust(18) for outcome in outcomes))
    for source in sorted({source for source, _ in table}):
        print(source.ljust(8), *(str(table[source, outcome]).rjust(18) for outcome in outcomes))
    print(f"{sum(alone.values())} that no other decoder reads: {dict(alone)}")
    print(*exceptions, sep="\n")
    return 1 if exceptions else 0


if __name__ == "__main__":
    sys.exit(main())
