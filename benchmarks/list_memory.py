"""Memory and speed of writing a manifest of many keys: from an S3 Inventory (Parquet, CSV) and from local files.

python benchmarks/list_memory.py --number 1000000
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def inventory(folder, number, kind):
    """A manifest.json with one file of a million rows after another."""
    data = folder / "data"
    data.mkdir(parents=True)
    files = []
    for start in range(0, number, 1_000_000):
        rows = range(start, min(start + 1_000_000, number))
        keys = [f"incoming/2026/{row % 365:03d}/camera-{row % 97:02d}/{row:09d}.jpg" for row in rows]
        name = f"data/{start}.{'parquet' if kind == 'Parquet' else 'csv.gz'}"
        if kind == "Parquet":
            tags = [f"{row:032x}" for row in rows]
            table = {"bucket": ["images"] * len(keys), "key": keys, "size": np.arange(len(keys)), "e_tag": tags}
            pq.write_table(pa.table(table), folder / name)
        else:
            lines = (f'"images","{key}","{row}","{row:032x}"\n' for key, row in zip(keys, rows, strict=True))
            with gzip.open(folder / name, "wt", compresslevel=1) as file:
                file.writelines(lines)
        files.append({"key": name})
    content = {"sourceBucket": "images", "fileFormat": kind, "fileSchema": "Bucket, Key, Size, ETag", "files": files}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder / "manifest.json"


def local(folder, number):
    for start in range(0, number, 100_000):
        below = folder / f"{start:09d}"
        below.mkdir(parents=True)
        for row in range(start, min(start + 100_000, number)):
            os.close(os.open(below / f"{row:09d}.jpg", os.O_CREAT))
    return folder


def peak():
    """Peak resident memory of this process in KiB; getrusage would begin with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def measure(place, output):
    """In a process of its own, with what the driver has loaded."""
    from deepfake_ray.data import manifest
    from deepfake_ray.drivers import score  # noqa: F401

    before = peak()
    started = time.monotonic()
    with manifest.Writer(output) as writer:
        for page in manifest.pages_of([place]):
            writer.add(page)
        listed = writer.close()
    seconds = time.monotonic() - started
    grown = peak() - before
    print(f"{listed.num_images:,} images in {seconds:.0f} s, the process grew by {grown / 1024:.0f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=2)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    with tempfile.TemporaryDirectory() as scratch:
        places = {
            "inventory, Parquet": inventory(Path(scratch, "parquet"), arguments.number, "Parquet"),
            "inventory, CSV": inventory(Path(scratch, "csv"), arguments.number, "CSV"),
            "local files": local(Path(scratch, "local"), arguments.number),
        }
        for index, (name, place) in enumerate(places.items()):
            print(f"{name}: ", end="", flush=True)
            command = [sys.executable, __file__, "--measure", str(place), f"{scratch}/manifest-{index}"]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
