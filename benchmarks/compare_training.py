"""Training against its peers: the same images, network, batch, precision and augmentation, one after the other,
several rounds, each with the best of some settings, which the first round searches. Whole epochs with their
validation, after which network and optimizer are saved; the first is left out. The limit does nothing but training
steps on a batch that is in memory.

    python benchmarks/compare_training.py --small FOLDER --faces FOLDER --output benchmarks/results/NAME

FOLDERs have Train/ and Validation/ with a folder for each class: some 10,000 images of 32 px, and some 700 faces.
Writes NAME.md (the table) and NAME.csv (each run), and the table into docs/performance.md, if it has a
place for it. --cases measures some anew. Needs pip install -e '.[bench]'.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from result_tables import into_performance, kept_runs, markdown, rate, write_runs

ROOT = Path(__file__).parents[1]
OURS, LIMIT = "this project", "limit"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
PEERS = {LIMIT: "limit_ddp.py", "torchrun, DDP, DataLoader": "torchrun_ddp.py", "Lightning": "lightning_ddp.py"}
SETTINGS = [(1, 1), (1, 2), (2, 1)]
"""Processes that compute, sharing the CPUs among their threads, and the DataLoader's workers of each."""


def this_project(processes, flags):
    """Epochs, as in history.csv."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "run")
        command = [
            sys.executable, str(ROOT / "jobs" / "train.py"), "--output", str(output), "--num-workers", str(processes),
            "--early-stopping-patience", "99", "--allow-leaks", *flags,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(output / "history.csv") as file:
            return list(csv.DictReader(file))


def peer(name, processes, loader_workers, flags):
    """Epochs, as it says them."""
    script = str(ROOT / "benchmarks" / "peers" / PEERS[name])
    command = [
        sys.executable, *([] if name == "Lightning" else [*TORCHRUN, str(processes)]), script, "--processes",
        str(processes), "--loader-workers", str(loader_workers), *flags,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def measure(name, settings, flags):
    started = time.monotonic()
    epochs = this_project(settings[0], flags) if name == OURS else peer(name, *settings, flags)
    seconds = time.monotonic() - started
    waits = [float(epoch.get("data_wait_share", "nan")) for epoch in epochs]
    return {
        "images_per_s": statistics.median(float(epoch["images_per_s"]) for epoch in epochs[1:]),
        "besides_s": seconds - sum(float(epoch["epoch_s"]) for epoch in epochs),
        "data_wait_share": statistics.median(waits[1:]),
    }


def compare(case, flags, rounds):
    """All runs of a case: in the first round all settings, of which the best is the one that counts and goes on."""
    rows, best = [], {}
    for round_number in range(rounds):
        for name in (*PEERS, OURS):
            possible = [best[name]] if best.get(name) else SETTINGS if name not in (LIMIT, OURS) else [(1, 1), (2, 1)]
            tried = {settings: measure(name, settings, flags) for settings in possible}
            best[name] = max(tried, key=lambda settings: tried[settings]["images_per_s"])
            if len(tried) > 1:
                rates = ", ".join(f"{settings}: {rate(found['images_per_s'])}" for settings, found in tried.items())
                print(f"{case}, {name}: {rates}", flush=True)
            rows.append({
                "case": case, "system": name, "round": round_number, "processes": best[name][0],
                "loader_workers": "" if name in (LIMIT, OURS) else best[name][1], **tried[best[name]],
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def table(rows):
    """Medians, and the medians of the rounds' ratios to the limit."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = [row for row in rows if row["case"] == case]
        limits = {row["round"]: row["images_per_s"] for row in of_case if row["system"] == LIMIT}
        for system in dict.fromkeys(row["system"] for row in of_case):
            runs = [row for row in of_case if row["system"] == system]
            ratio = statistics.median(run["images_per_s"] / limits[run["round"]] for run in runs)
            middle = statistics.median(run["images_per_s"] for run in runs)
            besides = statistics.median(run["besides_s"] for run in runs)
            processes = str(runs[0]["processes"])
            lines.append([case, system, processes, rate(middle), f"{ratio:.2f}", f"{besides:.0f} s"])
    return markdown(["case", "system", "processes", "images/s", "of the limit", "besides the epochs"], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", required=True)
    parser.add_argument("--faces", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=["cnn", "resnet50"])
    options = parser.parse_args()
    cases = {
        "cnn": ("cnn, 32 px, batches of 128", options.small, "cnn", "32", "128", "3"),
        "resnet50": ("resnet50, 96 px, batches of 32", options.faces, "resnet50", "96", "32", "2"),
    }
    rows = kept_runs(options.output, ("images_per_s", "besides_s", "data_wait_share"))
    for key in options.cases:
        case, *values = cases[key]
        names = ("--data", "--arch", "--image-size", "--global-batch-size", "--epochs")
        flags = [word for pair in zip(names, values, strict=True) for word in pair]
        rows = [row for row in rows if row["case"] != case]
        rows += compare(case, [*flags, "--weights", "none"], options.rounds)
        write_runs(rows, options.output)
        Path(f"{options.output}.md").write_text(table(rows) + "\n")
        into_performance("training", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
