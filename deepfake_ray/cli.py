"""The command line of every job: configuration -> flags, errors -> exit codes, inside a Ray session."""

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import tyro

from deepfake_ray.errors import JobError, UserError

Config = TypeVar("Config")


def parse(config_class: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """The configuration that the arguments (default: those of the process) ask for.

    Raises:
        UserError: a value breaks a rule.
        SystemExit: a flag is unknown or missing (2), or help was asked for (0).
    """
    return tyro.cli(config_class, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def main(config_class: type[Any], job: str, arguments: Sequence[str] | None = None) -> int:
    """Run a job from the command line.

    Args:
        config_class: whose fields are the flags.
        job: `module:function`, imported after the flags are understood, so that `--help` answers at once.
        arguments: for tests.

    Returns:
        The exit code: 0 done, 1 failed, 2 the user's mistake, 130 interrupted.
    """
    try:
        config = parse(config_class, arguments)
        logging.basicConfig(level=logging.INFO if config.verbose else logging.WARNING, format="%(message)s")
        logging.getLogger("deepfake_ray").setLevel(logging.INFO)
        module, name = job.split(":")
        run: Callable[[Any], object] = getattr(import_module(module), name)
        from deepfake_ray.session import ray_session

        with ray_session(verbose=config.verbose):
            return _outcome(lambda: run(config))  # said before Ray ends, which may take the process with it
    except (UserError, KeyboardInterrupt) as error:
        return _say(error)


def _outcome(run: Callable[[], object]) -> int:
    try:
        run()
    except (UserError, JobError, KeyboardInterrupt) as error:
        return _say(error)
    return 0


def _say(error: BaseException) -> int:
    """Tell the user of an error; returns the exit code."""
    match error:
        case UserError():
            word, code = "error", 2
        case JobError():
            word, code = "failed", 1
        case _:
            word, code = "interrupted", 130
    print(f"{word}: {error}" if str(error) else word, file=sys.stderr, flush=True)
    return code
