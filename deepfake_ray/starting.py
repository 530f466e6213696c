"""The first lines of every job. Imports nothing of the project, whose modules take a while to load, before it has to.

Until a job handles signals itself (see `interrupts`), they end it with one line: Python's own KeyboardInterrupt, raised
in the middle of an import, shows a traceback, and in a callback of the import machinery it is lost: the job goes on.
"""

import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import NoReturn

JOBS = {
    "train": ("TrainConfig", "deepfake_ray.drivers.leave_one_source_out:train_or_cross"),
    "score": ("ScoreConfig", "deepfake_ray.drivers.score:score"),
    "evaluate": ("EvaluateConfig", "deepfake_ray.drivers.evaluate:evaluate"),
    "quantize": ("QuantizeConfig", "deepfake_ray.drivers.quantize:quantize_to_summary"),
    "quickstart": ("QuickstartConfig", "deepfake_ray.drivers.quickstart:quickstart"),
}
"""Job -> the class in `config` whose fields are its flags, and its `module:function`."""
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


def start(job: str) -> NoReturn:
    """Run a job as this process, with its arguments; see `drivers.cli.main`."""
    handle_signals()
    config, function = JOBS[job]
    cli = import_module("deepfake_ray.drivers.cli")
    sys.exit(cli.main(getattr(import_module("deepfake_ray.config"), config), function))


def main() -> NoReturn:
    """Run the command `deepfake-ray JOB ...`: the jobs, and without `--output` the scores of a few images."""
    job, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if job not in JOBS:
        asked = job in ("-h", "--help")
        usage = f"deepfake-ray {'|'.join(JOBS)} [--help] ..."
        text = usage if asked else f"error: The job must be one of {', '.join(JOBS)}: got {job!r}; {usage}"
        print(text, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    sys.argv = [f"deepfake-ray {job}", *arguments]
    if job == "score" and not any(word.partition("=")[0] in ("--output", "--help", "-h") for word in arguments):
        handle_signals()
        sys.exit(import_module("deepfake_ray.drivers.few_images").main(arguments))
    start(job)


def handle_signals() -> None:
    """End this process by SIGINT and SIGTERM until something else handles them; ignored ones stay so."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)


def end_at_once(number: int, _: FrameType | None) -> NoReturn:
    """A handler: nothing was begun, so nothing needs to be closed."""
    os.write(2, f"{SIGNALS[signal.Signals(number)]}: nothing was begun\n".encode())
    os._exit(128 + number)
