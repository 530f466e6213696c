"""Files fuzzed by structure: no hang, no crash, and no picture that differs from what a second decoder shows.

    python benchmarks/fuzz_images.py --files 2000 --seed 0

Prints a table of outcomes by format, and each file that was decoded otherwise than a second decoder does. OpenCV
(opencv-python-headless) and libvips (pyvips) are asked where they are installed, and Pillow; pictures count as the same
up to a mean difference of 2 grey levels. Files are decoded in a process of their own, which may die. Exit code 1 if
anything hung, crashed or differed.
"""

import argparse
import itertools
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
    return [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


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
        body += b"\0" * (len(body) & 1)
        return rng.choice([b"EXIF", b"XMP ", b"ICCP", b"JUNK"]) + struct.pack("<I", len(body)) + body
    if kind == "avif":
        return struct.pack(">I", 8 + len(body)) + b"free" + body
    if kind == "gif":
        return b"\x21\xfe" + bytes((min(255, len(body)),)) + body[:255] + b"\0"
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
    place = {"jpeg": 2, "png": 0, "webp": 4, "avif": 0, "tiff": 4, "gif": 1}.get(kind)
    if place is None:
        place = rng.choice([2, 10, 14, 18, 22, 28, 34])
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
    number = rng.randrange(1, 300)
    more = rng.choice([bytes(number), rng.randbytes(number % 12 + 1), b"\xff" * number])
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


def second_opinions(data, original):
    """Decoder -> its pixels, of those that read the file; and those of the file that it was made of."""
    found = {}
    for name, read in (("opencv", with_opencv), ("libvips", with_vips), ("pillow", with_pillow)):
        try:
            found[name] = read(data)
        except Exception:
            continue
    return {**found, "as it was made": original}


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


def distance(ours, theirs):
    """The mean difference in grey levels; infinite where the shapes differ."""
    return float(np.abs(ours.astype(int) - theirs).mean()) if ours.shape == theirs.shape else float("inf")


def serve(connection, seed):
    """Decode what comes; answer with the outcome, then with how far each other decoder is from it."""
    from deepfake_ray.errors import ImageError
    from deepfake_ray.images.decode import Limits, decode

    limits = Limits(max_bytes=1 << 26, max_pixels=1 << 24)
    originals = {name: decode(data, limits).pixels for name, data in layouts.of_all_kinds(seed).items()}
    while True:
        source, data = connection.recv()
        try:
            ours = decode(data, limits).pixels
        except ImageError as error:
            connection.send(str(error.code))
            continue
        connection.send("ok")
        opinions = second_opinions(data, originals[source])
        connection.send({name: distance(ours, pixels) for name, pixels in opinions.items()})


class Worker:
    """A process that may die."""

    def __init__(self, seed):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, seed), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, source, data):
        """The outcome, and the distances by decoder; "hang" or "crash", of ours or of another's."""
        self.connection.send((source, data))
        outcome = self.answer()
        if outcome != "ok":
            return outcome, {}
        opinions = self.answer()
        return (f"{opinions} of another", {}) if isinstance(opinions, str) else (outcome, opinions)

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
    worker = Worker(options.seed)
    for name, data in files(options.files, options.seed):
        _, source, mutation = name.split()
        outcome, opinions = worker.ask(source, data)
        if outcome == "ok":
            if opinions.keys() == {"as it was made"}:
                alone[source, mutation] += 1
            # Pillow decodes most formats for us, too: its word counts where no other reads the file.
            asked = {name: far for name, far in opinions.items() if name != "pillow"}
            if min((asked if len(asked) > 1 else opinions).values()) > TOLERANCE:
                outcome = "differs"
        elif outcome.startswith(("hang", "crash")):
            worker.process.kill()
            worker = Worker(options.seed)
        table[source.split("-")[0], outcome] += 1
        if outcome == "differs" or outcome.startswith(("hang", "crash")):
            exceptions.append(f"{name}: {outcome} { ({one: round(far, 1) for one, far in opinions.items()}) }")
            if options.keep:
                options.keep.mkdir(exist_ok=True, parents=True)
                (options.keep / name.replace(" ", "_")).write_bytes(data)
    outcomes = sorted({outcome for _, outcome in table})
    print("format".ljust(8), *(outcome.rjust(18) for outcome in outcomes))
    for source in sorted({source for source, _ in table}):
        print(source.ljust(8), *(str(table[source, outcome]).rjust(18) for outcome in outcomes))
    print(f"{sum(alone.values())} that no other decoder reads: {sorted(alone)}")
    print(*exceptions, sep="\n")
    return 1 if exceptions else 0


if __name__ == "__main__":
    sys.exit(main())
