"""What an evaluation costs beyond the scoring of the same images: both commands, from start to exit, in pairs.

python benchmarks/evaluate_cost.py --data FOLDER --model BUNDLE --repeats 3
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def seconds(job, *flags):
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="with a folder Test")
    parser.add_argument("--model", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    extra = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            scores, evaluation = Path(folder, "scores"), Path(folder, "evaluation")
            scoring = seconds("score", "--images", f"{options.data}/Test", "--model", options.model, "--output", scores)
            whole = seconds("evaluate", "--data", options.data, "--model", options.model, "--output", evaluation)
            number = json.loads((scores / "run.json").read_text())["num_images"]
        extra.append(whole - 1.05 * scoring)
        print(f"{number} images: scored in {scoring:.1f} s, evaluated in {whole:.1f} s", flush=True)
    print(f"evaluation - 1.05 x scoring: median {statistics.median(extra):.1f} s of {[round(s, 1) for s in extra]}")


if __name__ == "__main__":
    main()
