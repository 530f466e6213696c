"""Scoring against the limit: a bare loop, a process for each core, that reads, decodes and forwards the same images
with the same model and precision, and does nothing else. One after the other, several times, in one run. The plain loop
has batches of 64 and the C library's allocator as it is; the tuned loop has the job's own settings, and is the limit.

    python benchmarks/score_throughput.py --images FOLDER --arch cnn --image-size 128
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LINE = "plain loop {:.1f}, tuned loop {:.1f}, job {:.1f} images/s, first rows after {:.1f} s"
ROOT = Path(__file__).parents[1]


def make_bundle(place, arch, image_size):
    """Random weights: speed does not depend on them."""
    import torch

    from deepfake_ray.images.preprocessing import DECODE_MARGIN, Preparation
    from deepfake_ray.models import bundle, networks
    from deepfake_ray.models.scores import threshold_at
    from deepfake_ray.models.spec import Spec

    torch.manual_seed(0)
    arrays = {key: value.numpy() for key, value in networks.build(arch).state_dict().items()}
    thresholds = {"balanced": threshold_at(0.5, 1.0)}
    preparation = Preparation(image_size=image_size, decode_margin=DECODE_MARGIN)  # as training writes it
    spec = Spec(arch=arch, preparation=preparation, temperature=1.0, thresholds=thresholds)
    bundle.save(place, spec, arrays)


def _bare_loop(model, paths, batch_size, tuned, barrier, times):
    import numpy as np

    from deepfake_ray.images.decode import Limits, decode
    from deepfake_ray.images.preprocessing import prepare
    from deepfake_ray.models.inference import Predictor
    from deepfake_ray.processes.allocator import keep_freed_memory

    if tuned:
        keep_freed_memory()
    predictor = Predictor(model, num_threads=1)
    preparation = predictor.spec.preparation
    limits = Limits(max_bytes=10**8, max_pixels=10**8)
    size = preparation.image_size
    batch = np.zeros((batch_size, size, size, 3), np.uint8)
    barrier.wait()
    started = time.time()
    filled = 0
    for path in paths:
        with open(path, "rb") as file:
            batch[filled] = prepare(decode(file.read(), limits).pixels, preparation)
        filled += 1
        if filled == batch_size:
            predictor.logits(batch)
            filled = 0
    if filled:
        predictor.logits(batch)
    times.put((started, time.time()))


def limit(model, paths, batch_size, *, tuned):
    """Images/s of the bare loop."""
    context = multiprocessing.get_context("spawn")
    cores = os.cpu_count()
    barrier, times = context.Barrier(cores), context.Queue()
    loops = [
        context.Process(target=_bare_loop, args=(model, paths[i::cores], batch_size, tuned, barrier, times))
        for i in range(cores)
    ]
    for loop in loops:
        loop.start()
    found = [times.get() for _ in loops]
    for loop in loops:
        loop.join()
    return len(paths) / (max(end for _, end in found) - min(start for start, _ in found))


def job(images, model, output, *flags):
    """run.json of the scoring job, and the seconds from the command to the first rows."""
    command = [sys.executable, str(ROOT / "jobs" / "score.py"), "--images", images, "--model", model,
               "--output", output, *flags]  # fmt: skip
    started = time.time()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    first = None
    while process.poll() is None and first is None:
        written = [*Path(output).glob("chunks/chunk-*"), *Path(output).glob("predictions/part-*")]
        first = time.time() - started if written else None
        time.sleep(0.02)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said)
    return json.loads((Path(output) / "run.json").read_text()), first


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--limit", type=int, help="use so many images")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    paths = sorted(str(path) for path in Path(arguments.images).rglob("*.jpg"))[: arguments.limit]
    with tempfile.TemporaryDirectory() as scratch:
        model = f"{scratch}/model"
        make_bundle(model, arguments.arch, arguments.image_size)
        Path(scratch, "list.txt").write_text("\n".join(paths))
        rows = []
        for repeat in range(arguments.repeats):
            plain = limit(model, paths, 64, tuned=False)
            tuned = limit(model, paths, 16, tuned=True)
            run, first = job(f"{scratch}/list.txt", model, f"{scratch}/{repeat}")
            rows.append((plain, tuned, run["images_per_s"], first))
            print(LINE.format(*rows[-1]), flush=True)
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"{arguments.arch} {arguments.image_size} px, {len(paths)} images, medians of {len(rows)}:")
        print(LINE.format(*medians))
        for name, column in (("plain", 0), ("tuned", 1)):
            ratio = statistics.median(row[2] / row[column] for row in rows)
            print(f"job / {name} loop: {ratio:.3f}")


if __name__ == "__main__":
    main()
