"""Speed and memory of scoring as the number of images grows, with one and with two workers.

    python benchmarks/score_growth.py --small FOLDER

Images of 32 px are linked under new names where the folder has too few. Memory is the proportional set size (shared
pages are divided among who shares them) of the driver, and of it and all processes below it, Ray's own included, once a
second. Puts the table into docs/performance.md.
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
from result_tables import into_performance, markdown, rate
from score_throughput import make_bundle

ROOT = Path(__file__).parents[1]


def pss(process):
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def run(images, model, output, workers):
    """Peak memory of the driver, and of all processes, in bytes; images/s; seconds from the command to its end."""
    command = [sys.executable, str(ROOT / "jobs" / "score.py"), "--images", images, "--model", model,
               "--output", output, "--num-workers", str(workers)]  # fmt: skip
    started = time.monotonic()
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
    speed = json.loads((Path(output) / "run.json").read_text())["images_per_s"]
    return *peaks, speed, time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", required=True)
    parser.add_argument("--numbers", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    paths = sorted(Path(options.small).rglob("*.jpg"))
    rows = []
    with tempfile.TemporaryDirectory(dir=Path(options.small).parent) as scratch:
        make_bundle(f"{scratch}/model", "cnn", 32)
        for number in options.numbers:
            folder = Path(scratch, str(number))
            for i in range(number):
                (folder / f"{i // 10_000:03d}").mkdir(parents=True, exist_ok=True)
                os.link(paths[i % len(paths)], folder / f"{i // 10_000:03d}" / f"{i:07d}.jpg")
            for workers in (1, 2):
                output = f"{scratch}/out-{number}-{workers}"
                driver, everything, speed, seconds = run(str(folder), f"{scratch}/model", output, workers)
                memory = [f"{peak / 2**20:,.0f}" for peak in (driver, everything)]
                rows.append([f"{number:,}", str(workers), rate(speed), f"{seconds:.0f} s", *memory])
                print(rows[-1], flush=True)
    columns = ["images", "workers", "images/s", "command to end", "driver, MiB", "all processes, MiB"]
    into_performance("growth", markdown(columns, rows))


if __name__ == "__main__":
    main()
