"""Training against `torchrun` + DistributedDataParallel + DataLoader (peers/torchrun_ddp.py): two processes each, the
same images, model, batch, precision and augmentation, one after the other in one run. Whole epochs with their
validation; the first is left out; the time from the command to the first epoch's start is reported apart.

    python benchmarks/train_throughput.py --data FOLDER --arch cnn --image-size 32 --global-batch-size 128
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

ROOT = Path(__file__).parents[1]


def measured(epochs, seconds):
    """Images/s of each epoch but the first; what the run took besides its epochs."""
    rates = [float(epoch["images_per_s"]) for epoch in epochs[1:]]
    return {"images_per_s": rates, "besides_s": seconds - sum(float(epoch["epoch_s"]) for epoch in epochs)}


def this_project(options, folder):
    output = Path(folder, "run")
    command = [
        sys.executable, str(ROOT / "jobs" / "train.py"), "--output", str(output), "--num-workers", "2",
        "--early-stopping-patience", "99", "--allow-leaks", *options,
    ]  # fmt: skip
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(output / "history.csv") as file:
        epochs = list(csv.DictReader(file))
    waits = [float(epoch["data_wait_share"]) for epoch in epochs[1:]]
    return measured(epochs, time.monotonic() - started) | {"data_wait_share": waits}


def torchrun(options, loader_workers):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(ROOT / "benchmarks" / "peers" / "torchrun_ddp.py"), "--loader-workers", str(loader_workers), *options,
    ]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    epochs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return measured(epochs, time.monotonic() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--image-size", default="32")
    parser.add_argument("--global-batch-size", default="128")
    parser.add_argument("--epochs", default="3")
    parser.add_argument("--loader-workers", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    names = ("data", "arch", "weights", "image_size", "global_batch_size", "epochs")
    flags = [word for name in names for word in (f"--{name.replace('_', '-')}", getattr(options, name))]
    for _ in range(options.repeats):
        for number in options.loader_workers:
            peer = torchrun(flags, number)
            print(f"torchrun, {number} loader workers a process: {peer}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            ours = this_project(flags, folder)
        print(f"this project: {ours}", flush=True)
        ratio = statistics.median(ours["images_per_s"]) / statistics.median(peer["images_per_s"])
        print(f"this project / torchrun: {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
