"""The command line of every job: configuration -> flags, errors -> exit codes, inside a Ray session."""

import contextlib
import json
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, TextIO, TypeVar

import tyro

from deepfake_ray.errors import JobError, UserError
from deepfake_ray.interrupts import Interrupts

Config = TypeVar("Config")
SECONDS_OF_SILENCE = 1.5
"""After which a job that is still looking at places, of a slow storage, says so."""


def parse(config_class: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """The configuration that the arguments (default: those of the process) ask for.

    Raises:
        UserError: a value breaks a rule.
        SystemExit: a flag is unknown or missing (2), or help was asked for (0).
    """
    return tyro.cli(config_class, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def main(config_class: type[Any], job: str, arguments: Sequence[str] | None = None) -> int:
    """Run a job from the command line, as the process's main thread.

    Results go to standard output, everything else to standard error. With --json, standard output gets one JSON
    object and nothing else: the job's summary, or `{"error": ..., "exit_code": ...}`.

    Args:
        config_class: whose fields are the flags.
        job: `module:function`, which takes the configuration and returns the summary; imported after the flags and
            what they name are checked, so that `--help` and mistakes are answered at once.
        arguments: for tests.

    Returns:
        The exit code: 0 done, 1 failed, 2 the user's mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with Interrupts(lambda: "nothing was begun") as interrupts:
        end = _End(interrupts, sys.stdout if "--json" in arguments else None)
        with contextlib.redirect_stdout(sys.stderr) if "--json" in arguments else contextlib.nullcontext():
            try:
                return _run(parse(config_class, arguments), job, end, interrupts)
            except BaseException as error:
                return end.failed(error)


def _run(config: Any, job: str, end: "_End", interrupts: Interrupts) -> int:
    started = time.monotonic()
    logging.basicConfig(level=logging.INFO if config.verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("deepfake_ray").setLevel(logging.INFO)
    from deepfake_ray.console import say
    from deepfake_ray.drivers import checks

    interrupts.advice = lambda: how_to_go_on(config.output, resuming=getattr(config, "resume", False))
    waiting = threading.Timer(SECONDS_OF_SILENCE, say, ["looking at what the job is to read and write ..."])
    waiting.daemon = True
    waiting.start()
    try:
        checks.check(config)
    finally:
        waiting.cancel()
    say("loading Ray and what else the job needs ...")
    checks.check_network(config)
    run: Callable[[Any], Mapping[str, Any]] = resolve_name(job)
    from deepfake_ray.cluster.session import ray_session

    with ray_session(verbose=config.verbose):
        try:
            summary = run(config)
        except BaseException as error:
            return end.failed(error)  # said before Ray ends, which may take the process with it
        return end.done({"wall_s": time.monotonic() - started, **summary})


def how_to_go_on(output: str, *, resuming: bool) -> str:
    """What an interrupted job leaves behind, and how it is gone on with."""
    from deepfake_ray.storage import files, outputs

    output = files.absolute(output)
    same = "the same command" if resuming else "the same command with --resume"
    if files.is_local(output):  # another storage may be what the job is waiting for
        if not set(files.list_names(output)) - {outputs.LOCK}:
            return "nothing was written; the same command begins anew"
        if outputs.is_finished(output):
            return f"{output} is finished all the same"
    return f"what is written stays in {output}; {same} goes on from there"


class _End:
    """How a job ends: the last line, or with --json the object, and the exit code.

    Args:
        interrupts: of this process.
        results: where the JSON goes; None without --json.
    """

    def __init__(self, interrupts: Interrupts, results: TextIO | None):
        self._interrupts, self._results = interrupts, results
        self._code: int | None = None

    def done(self, summary: Mapping[str, Any]) -> int:
        """The job has done its work."""
        return self._end(0, summary)

    def failed(self, error: BaseException) -> int:
        """The job has raised; what is neither a user's mistake, a failure nor an interruption is told in full."""
        if self._code is not None:  # by Ray, in its end: the job's own is told already
            return self._code
        if (code := self._interrupts.code()) is not None:
            return self._end(code, {"error": "interrupted", "exit_code": code})
        match error:
            case UserError():
                word, code = "error", 2
            case JobError():
                word, code = "failed", 1
            case KeyboardInterrupt():
                word, code = "interrupted", 130
            case SystemExit(code=0 | None):
                raise error
            case SystemExit(code=int(code)):
                self._end(code, {"error": "the flags are not understood", "exit_code": code})
                raise error
            case _:  # a fault of this program or of a library
                traceback.print_exception(error)
                return self._end(1, {"error": f"{type(error).__name__}: {error}", "exit_code": 1})
        print(f"{word}: {error}" if str(error) else word, file=sys.stderr, flush=True)
        return self._end(code, {"error": str(error) or word, "exit_code": code})

    def _end(self, code: int, summary: Mapping[str, Any]) -> int:
        if self._results is not None:
            text = json.dumps(_finite(summary), ensure_ascii=False, allow_nan=False, default=str)
            print(text, file=self._results, flush=True)
        self._code = code
        self._interrupts.over(code)
        return code


def _finite(value: Any) -> Any:
    """Null for what JSON has no number for: NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
