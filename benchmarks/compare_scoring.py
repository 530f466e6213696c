"""Scoring against its peers: one after the other, several rounds, over the same images with the same weights and
precision, each peer with the best of some settings. images/s are counted from when each process has finished its first
batch (this project: as many chunks are written as it has processes) to the end of the last one, and what a peer's first
batch takes beyond 10 seconds counts too. Memory is the proportional set size of all its processes; start-up is the time
from the command to the first finished batch, of 100 images in the case of that name.

    python benchmarks/compare_scoring.py --faces FOLDER --small FOLDER --output benchmarks/results/NAME

writes NAME.md (the table), NAME.csv (each run) and NAME.png, and the tables of
docs/performance.md. --cases measures some anew. Needs pip install -e '.[bench]'.
"""

import argparse
import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.compute as pc
import pyarrow.dataset as pads
import simplejpeg
import torch
from PIL import Image
from result_tables import into_performance, kept_runs, markdown, rate, write_runs
from score_throughput import make_bundle

ROOT = Path(__file__).parents[1]
DAFT = "Daft"
OURS, INTEGERS, ON_A_CLUSTER, LIMIT = "this project", "this project, int8", "this project, Ray running", "limit"
PEERS = {
    LIMIT: "limit", "DataLoader": "dataloader", "timm": "timm_loader", "Ray's recipe": "ray_recipe", DAFT: "daft_udf",
}  # fmt: skip
SETTINGS = [(16, 2, 1, 0), (32, 2, 1, 0), (16, 1, 2, 0)]
"""Batch size, processes, torch's threads in each that computes, and whether Daft decodes a batch at a time."""
SMALL_SETTINGS = [(16, 2, 1, 0), (64, 2, 1, 0), (64, 1, 2, 0)]
SAME_LOADER = {"timm": "DataLoader"}
"""Whose settings are another's: timm's loader is torch's, and chose the same in every case."""
SECONDS = 15.0
"""That a run is to take, once it runs."""
SECONDS_TO_START = 10.0
"""What the first batch takes beyond this counts: Daft may decode all images of a run before it hands out any."""
START_UP = "start-up, 100 images"


def large_jpegs(faces, folder, number):
    """12 megapixels: faces enlarged, with a camera's noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, path in enumerate(faces[:: len(faces) // number][:number]):
        picture = np.asarray(Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
        (folder / f"{i:02d}.jpg").write_bytes(simplejpeg.encode_jpeg(noisy, 90, colorsubsampling="420"))
    return sorted(map(str, folder.glob("*.jpg")))


def repeated(paths, number, folder):
    """So many paths; links where there are fewer files."""
    folder.mkdir()
    found = []
    for i in range(number):
        link = folder / f"{i:06d}.jpg"
        link.symlink_to(paths[i % len(paths)])
        found.append(str(link))
    return found


class Memory:
    """Peak of the proportional set size of a process and all below it, in MiB."""

    def __init__(self, pid):
        self.peak = 0.0
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(2.0):
            total = 0
            try:
                root = psutil.Process(self._pid)
                processes = [root, *root.children(recursive=True)]
            except psutil.Error:
                return
            for process in processes:
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, OSError):
                    continue
            self.peak = max(self.peak, total / 2**20)


def measure(name, paths, model, settings):
    """images_per_s, startup_s, memory_mib of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        listed, output = Path(scratch, "list.txt"), Path(scratch, "output")
        listed.write_text("\n".join(paths))
        ours = name not in PEERS
        if ours:
            command = [str(ROOT / "jobs" / "score.py"), "--images", str(listed), "--model", model]
        else:
            script = PEERS[name]
            batch_size, workers, threads, in_batches = settings
            command = [
                str(ROOT / "benchmarks" / "peers" / f"{script}.py"), "--images", str(listed), "--model", model,
                "--batch-size", str(batch_size), "--workers", str(workers), "--threads", str(threads),
                "--in-batches", str(in_batches),
            ]  # fmt: skip
        started = time.time()
        process = subprocess.Popen(
            [sys.executable, *command, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        first = None
        with Memory(process.pid) as memory:
            while process.poll() is None:
                if ours and first is None and any([*output.glob("chunks/chunk-*"), *output.glob("predictions/part-*")]):
                    first = time.time()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
        if process.returncode:
            raise SystemExit(f"{name}: {process.stdout.read().decode()[-3000:]}")
        if ours:
            batches = written_chunks(output)
            steady, ahead = sorted(batches)[min(os.cpu_count(), len(batches)) - 1][0], 0.0
        else:
            logged = [tuple(map(float, line.split())) for line in (output / "batches.log").open()]
            batches = [(when, number) for when, number, _ in logged]
            first = min(when for when, _ in batches)
            steady = max({pid: when for when, _, pid in reversed(logged)}.values())
            ahead = max(0.0, first - started - SECONDS_TO_START)
        # The end of each process' first batch is no work of a measured second.
        done = sum(number for when, number in batches if when > steady)
        seconds = max(when for when, _ in batches) - steady + ahead
        return {
            "images_per_s": done / seconds if done else 0.0, "startup_s": first - started, "memory_mib": memory.peak
        }  # fmt: skip


def written_chunks(output):
    """When each was written, and its number of images."""
    rows = pads.dataset(output / "predictions").to_table(columns=["scored_at"])
    return [(chunk["values"].timestamp(), chunk["counts"]) for chunk in pc.value_counts(rows["scored_at"]).to_pylist()]


def quantise(model, paths):
    """The bundle in 8-bit integers, beside it."""
    from deepfake_ray.images.decode import Limits
    from deepfake_ray.images.loading import Loader
    from deepfake_ray.models import bundle, int8
    from deepfake_ray.models.inference import evaluated

    spec, detector = evaluated(model)
    loader = Loader(limits=Limits(max_bytes=10**9, max_pixels=10**9), preparation=spec.preparation)
    pixels = torch.from_numpy(np.stack([image.crops[0] for image in loader.load_all(paths)]))
    scales = int8.calibrate(detector.network, [detector.normalized(pixels)])
    bundle.save(f"{model}-int8", dataclasses.replace(spec, scales=scales), bundle.load(model)[1])


def compare(case, paths, expected, model, rounds):
    """All runs of a case. The peers' settings are searched first, on fewer images; then each system gets as many as
    should take it so many seconds, and no fewer than these.
    """
    best, rates = {}, {}
    few = paths[: max(int(expected * SECONDS / 5), 96)]  # some batches for each process

    def search(name, possible):
        tried = {settings: measure(name, few, model, settings)["images_per_s"] for settings in possible}
        print(f"{case}, {name}: " + ", ".join(f"{s}: {rate(found)}" for s, found in tried.items()), flush=True)
        fastest = max(tried, key=tried.get)
        if tried[fastest] > rates.get(name, -1.0):
            best[name], rates[name] = fastest, tried[fastest]

    possible = SMALL_SETTINGS if expected > 1000 else SETTINGS
    for name in PEERS:
        if name in SAME_LOADER:
            search(name, [best[SAME_LOADER[name]]])
        elif name == LIMIT:
            search(name, [settings for settings in possible if settings[1] > 1])  # a process for each core
        else:
            search(name, possible)
        if name == DAFT:
            search(name, [(*best[name][:3], 1)])
    rates |= {OURS: rates[LIMIT], INTEGERS: 3 * rates[LIMIT]}
    rows = []
    for round_number in range(rounds):
        for name in (LIMIT, OURS, INTEGERS, *(name for name in best if name != LIMIT)):
            place = f"{model}-int8" if name == INTEGERS else model
            found = measure(name, paths[: max(int(SECONDS * rates[name]), len(few))], place, best.get(name))
            rows.append({"case": case, "system": name, "round": round_number, "settings": best.get(name), **found})
            print(rows[-1], flush=True)
    return rows


def compare_start_up(paths, model, rounds):
    """100 images, with a cluster that is there and without one."""
    rows = []

    def add(name, round_number):
        rows.append({"case": START_UP, "system": name, "round": round_number, "settings": SETTINGS[0],
                     **measure(name, paths, model, SETTINGS[0])})  # fmt: skip
        print(rows[-1], flush=True)

    for round_number in range(rounds):
        for name in (OURS, *PEERS):
            add(name, round_number)
    ray = f"{Path(sys.executable).parent}/ray"
    port = "6412"
    start = [ray, "start", "--head", "--port", port, "--include-dashboard=false", "--disable-usage-stats"]
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4})
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{port}"
    try:
        for round_number in range(rounds):
            add(ON_A_CLUSTER, round_number)
    finally:
        del os.environ["RAY_ADDRESS"]
        subprocess.run([ray, "stop"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return rows


def median(rows, case, system, column):
    return statistics.median(row[column] for row in rows if (row["case"], row["system"]) == (case, system))


def table(rows):
    """Medians, and the medians of the rounds' ratios to the limit."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = [row for row in rows if row["case"] == case]
        limits = {row["round"]: row["images_per_s"] for row in of_case if row["system"] == LIMIT}
        for system in dict.fromkeys(row["system"] for row in of_case):
            if case == START_UP:
                lines.append([case, system, f"{median(rows, case, system, 'startup_s'):.1f} s", "", ""])
                continue
            ratio = statistics.median(
                row["images_per_s"] / limits[row["round"]] for row in of_case if row["system"] == system
            )
            middle, memory = (median(rows, case, system, name) for name in ("images_per_s", "memory_mib"))
            lines.append([case, system, rate(middle), f"{ratio:.2f}", f"{memory:,.0f}"])
    return markdown(["case", "system", "images/s", "of the limit", "peak memory, MiB"], lines)


DOLLARS_PER_CORE_HOUR = 0.048
"""On demand: m6i.8xlarge, 32 vCPUs, 1.536 $ an hour in us-east-1."""


def cost(rows):
    """Markdown: what was measured, by core, and what follows from it at a price."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows if row["case"] != START_UP):
        measured = {row["system"] for row in rows if row["case"] == case}
        for system in (system for system in (OURS, INTEGERS) if system in measured):
            of_core = median(rows, case, system, "images_per_s") / os.cpu_count()
            hours = 1e6 / of_core / 3600
            price = f"{hours * DOLLARS_PER_CORE_HOUR:,.3f} $"
            lines.append([case, system, rate(of_core), f"{hours:,.2f}", price])
    return markdown(["case", "", "images/s a core", "core hours a million images", "a million images"], lines)


def picture(rows, place):
    import matplotlib.pyplot as plt

    cases = [case for case in dict.fromkeys(row["case"] for row in rows) if case != START_UP]
    if not cases:
        return
    figure, axes = plt.subplots(1, len(cases), figsize=(4 * len(cases), 3), layout="constrained", squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        systems = list(dict.fromkeys(row["system"] for row in rows if row["case"] == case))
        rates = [median(rows, case, system, "images_per_s") for system in systems]
        colours = ["#bbbbbb" if s == LIMIT else "#4c72b0" if s in PEERS else "#c44e52" for s in systems]
        axis.barh(systems, rates, color=colours)
        axis.invert_yaxis()
        axis.set_title(case)
        axis.set_xlabel("images/s")
    figure.savefig(place, dpi=120)


def write(rows, output):
    write_runs(rows, output)
    Path(f"{output}.md").write_text(table(rows) + "\n")
    picture(rows, f"{output}.png")
    into_performance("scoring", table(rows))
    into_performance("cost", cost(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", required=True, help="JPEGs of some 224 px")
    parser.add_argument("--small", required=True, help="JPEGs of 32 px")
    parser.add_argument("--output", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=["start-up", "32", "128", "224", "12mp"])
    options = parser.parse_args()
    faces, small = (sorted(map(str, Path(folder).rglob("*.jpg"))) for folder in (options.faces, options.small))
    rows = kept_runs(options.output, ("images_per_s", "startup_s", "memory_mib"))
    with tempfile.TemporaryDirectory() as scratch:
        large = large_jpegs(faces, Path(scratch, "large"), 24) if "12mp" in options.cases else []
        cases = {  # arch, image size, files, about how many images/s to expect
            "start-up": (START_UP, "cnn", 128, faces, None),
            "32": ("cnn, 32 px", "cnn", 32, small, 3000),
            "128": ("cnn, 128 px", "cnn", 128, faces, 300),
            "224": ("resnet50, 224 px", "resnet50", 224, faces, 20),
            "12mp": ("cnn, 224 px, from 12 megapixels", "cnn", 224, large, 20),
        }
        for key in options.cases:
            case, arch, image_size, paths, expected = cases[key]
            model = f"{scratch}/model-{key}"
            make_bundle(model, arch, image_size)
            folder = Path(scratch, f"images-{key}")
            rows = [row for row in rows if row["case"] != case]
            if key == "start-up":
                rows += compare_start_up(repeated(paths, 100, folder), model, options.rounds)
            else:
                chosen = repeated(paths, int(4 * SECONDS * expected), folder)
                quantise(model, chosen[:24])
                rows += compare(case, chosen, expected, model, options.rounds)
            write(rows, options.output)
    print(table(rows))


if __name__ == "__main__":
    main()
