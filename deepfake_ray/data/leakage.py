"""Which images are the same picture: perceptual hashes, and the images that a model was trained on. Knows no Ray."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepfake_ray.storage import files

NEAR_BITS = 4
"""Pictures whose hashes differ in at most so many of 63 bits are called near duplicates."""
FILE = "training_images.parquet"
"""In the bundle: what it was trained and tuned on."""
SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("phash", pa.uint64()),
        pa.field("num_bytes", pa.int64()),
    ]
)
"""Earlier bundles do not know num_bytes: it is null there."""


def near_pairs(ours: NDArray[np.uint64], theirs: NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
    """Pairs of positions whose hashes differ in at most `NEAR_BITS` bits, and that number.

    Hashes that differ in no more bits than that agree wholly in one of NEAR_BITS + 1 pieces, so that only those which
    share a piece are compared: millions of images take minutes.
    """
    pieces = np.array_split(np.arange(64, dtype=np.uint64), NEAR_BITS + 1)
    seen: set[tuple[int, int]] = set()
    for bits in pieces:
        mask = (np.uint64(1) << bits).sum(dtype=np.uint64)
        order = np.argsort(theirs & mask, kind="stable")
        ranked = (theirs & mask)[order]
        first, last = (np.searchsorted(ranked, ours & mask, side) for side in ("left", "right"))
        for i in np.flatnonzero(last > first):
            candidates = order[first[i] : last[i]]
            distances = np.bitwise_count(theirs[candidates] ^ ours[i])
            for k in np.flatnonzero(distances <= NEAR_BITS):
                pair = (int(i), int(candidates[k]))
                if pair not in seen:
                    seen.add(pair)
                    yield (*pair, int(distances[k]))


def save(model: str, table: pa.Table) -> None:
    """Write the images that a bundle is trained on (`SCHEMA`) into it."""
    with files.new_file(files.join(model, FILE)) as path:
        pq.write_table(table, path, compression="zstd")


def load(model: str) -> pa.Table | None:
    """The images that a bundle was trained on; None if it does not say."""
    place = files.join(files.absolute(model), FILE)
    if not files.exists(place):
        return None
    with files.open_file(place) as opened:
        return pq.read_table(opened, schema=SCHEMA)


def find_leaks(tested: pa.Table, trained: pa.Table, examples: int) -> dict[str, Any]:
    """Images that a model is judged by and has seen.

    Args:
        tested: with `SCHEMA`'s columns uri, sha256 and phash.
        trained: `SCHEMA`.
        examples: how many to name.

    Returns:
        `num_exact` (images with the bytes of a training image), `num_near` (others that look like one) and `examples`:
        uri, training_uri, split, differing_bits (None: the bytes are the same).
    """
    same_bytes = pc.index_in(tested["sha256"], value_set=trained["sha256"].combine_chunks(), skip_nulls=True)
    match: dict[int, tuple[int, int | None]] = {
        i: (k, None) for i, k in enumerate(same_bytes.to_pylist()) if k is not None
    }
    num_exact = len(match)
    ours, theirs = (np.flatnonzero(table["phash"].is_valid()) for table in (tested, trained))
    hashes = (table["phash"].take(rows).to_numpy() for table, rows in ((tested, ours), (trained, theirs)))
    for i, k, bits in near_pairs(*hashes):
        position = int(ours[i])
        nearest = match.get(position)
        if nearest is None or (nearest[1] is not None and bits < nearest[1]):
            match[position] = int(theirs[k]), bits
    ordered = sorted(match.items(), key=lambda item: (item[1][1] is not None, item[1][1] or 0, item[0]))
    return {
        "num_exact": num_exact,
        "num_near": len(match) - num_exact,
        "examples": [
            {
                "uri": tested["uri"][i].as_py(),
                "training_uri": trained["uri"][k].as_py(),
                "split": trained["split"][k].as_py(),
                "differing_bits": bits,
            }
            for i, (k, bits) in ordered[:examples]
        ],
    }
