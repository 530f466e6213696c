"""Memory and speed of scoring as the number of images grows.

    python benchmarks/score_growth.py --images FOLDER --model BUNDLE --numbers 10000 100000

Images are linked under new names where the folder has too few. Memory is the proportional set size (shared pages are
divided among who shares them) of the driver, and of it and all processes below it, Ray's own included, once a second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def pss(process):
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def run(images, model, output):
    command = [sys.executable, str(ROOT / "jobs" / "score.py"), "--images", images, "--model", model,
               "--output", output]  # fmt: skip
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    driver = psutil.Process(job.pid)
    peaks = [0, 0]
    while job.poll() is None:
        own = pss(driver)
        try:
            below = driver.children(recursive=True)
        except psutil.Error:
            break
        peaks = [max(peaks[0], own), max(peaks[1], own + sum(map(pss, below)))]
        time.sleep(1)
    _, said = job.communicate()
    if job.returncode:
        raise SystemExit(said)
    return peaks, json.loads((Path(output) / "run.json").read_text())["images_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--numbers", type=int, nargs="+", default=[10_000, 100_000])
    arguments = parser.parse_args()
    paths = sorted(Path(arguments.images).rglob("*.jpg"))
    with tempfile.TemporaryDirectory(dir=Path(arguments.images).parent) as scratch:
        for number in arguments.numbers:
            folder = Path(scratch, str(number))
            for i in range(number):
                (folder / f"{i // 10_000:03d}").mkdir(parents=True, exist_ok=True)
                os.link(paths[i % len(paths)], folder / f"{i // 10_000:03d}" / f"{i:07d}.jpg")
            (driver, everything), speed = run(str(folder), arguments.model, f"{scratch}/out-{number}")
            print(f"{number:9,} images: driver {driver / 2**20:.0f} MiB, all {everything / 2**20:.0f} MiB, "
                  f"{speed:.0f} images/s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
