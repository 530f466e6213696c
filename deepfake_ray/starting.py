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

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


def start(config: str, job: str) -> NoReturn:
    """Run a job as this process; see `drivers.cli.main`.

    Args:
        config: the class in `config` whose fields are the flags.
        job: `module:function`.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)
    cli = import_module("deepfake_ray.drivers.cli")
    sys.exit(cli.main(getattr(import_module("deepfake_ray.config"), config), job))


def end_at_once(number: int, _: FrameType | None) -> NoReturn:
    """A handler: nothing was begun, so nothing needs to be closed."""
    os.write(2, f"{SIGNALS[signal.Signals(number)]}: nothing was begun\n".encode())
    os._exit(128 + number)
