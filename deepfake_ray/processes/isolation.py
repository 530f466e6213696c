"""Work in a process of its own, so that an item on which it crashes or hangs costs that item and not the run.

The process notes in shared memory which item it is at. When it dies there, a fresh one begins anew; the item that it
dies of twice is given up. An item that takes too long is given up at once, the process with it. Knows no Ray, and
nothing of images.
"""

import importlib
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np

from deepfake_ray.processes import memory_limit

SECONDS_BETWEEN_LOOKS = 1.0
START_TIMEOUT_S = 600.0
"""For making the worker: a model may come from afar. Libraries that get too little memory may never end loading."""
MAX_UNEXPLAINED_DEATHS = 3
"""In one call, with no item to suspect, or in a row while starting."""
_NO_ITEM = -1.0


class _InFlight:
    """The item that a process is at, in memory that outlives it: float64 item, and second when it began."""

    def __init__(self, memory: int):
        os.truncate(memory, 16)
        self._slot = np.frombuffer(mmap.mmap(memory, 16), np.float64)

    def clear(self) -> None:
        self._slot[0] = _NO_ITEM

    @contextmanager
    def at(self, item: int) -> Iterator[None]:
        self._slot[1] = time.monotonic()  # the same clock in all processes of a machine
        self._slot[0] = item
        try:
            yield
        finally:
            self._slot[0] = _NO_ITEM

    def item(self) -> int | None:
        return None if self._slot[0] == _NO_ITEM else int(self._slot[0])

    def seconds(self) -> float:
        """At the item, if there is one."""
        return 0.0 if self._slot[0] == _NO_ITEM else time.monotonic() - float(self._slot[1])


@dataclass(frozen=True)
class Items:
    """What an isolated worker is told of the items of its work, and tells."""

    at: Callable[[int], Any]
    """A context manager, entered with an item for as long as the worker is at it."""
    given_up: Mapping[int, str] = field(default_factory=dict)
    """Not to be touched: item -> why, a crash (`crashed ...`) or a time-out (`took ...`)."""


class WorkerDiedError(RuntimeError):
    """The process died repeatedly while it was at no item, or did not start in time."""


class Isolated:
    """A worker object in a process of its own, which is replaced when it dies.

    Args:
        worker: `module:Class`; an object is made with `argument`, and called with some work and `Items`.
        argument: for the worker; pickled.
        timeout_s: for one item.
        decoder_bytes: of memory that it may take beside what it has when it is made; see `memory_limit`.

    Raises:
        Exception: what the worker raises, when it is made and when it is called.
        WorkerDiedError: see there.
    """

    def __init__(self, worker: str, argument: Any, *, timeout_s: float = 60.0, decoder_bytes: int | None = None):
        self._worker, self._argument, self._decoder_bytes = worker, argument, decoder_bytes
        self._timeout_s = timeout_s
        self._memory = os.memfd_create("items")
        self._in_flight = _InFlight(self._memory)
        self._awaits_answer = False
        self._start()

    def _start(self) -> None:
        deaths = 0
        while not self._starts():
            deaths += 1
            status = self._end()
            if deaths >= MAX_UNEXPLAINED_DEATHS:
                raise WorkerDiedError(f"{self._worker} died {deaths} times while starting, the last time of {status}")

    def _starts(self) -> bool:
        """Start the process; returns whether it lived until its worker was made."""
        self._in_flight.clear()
        self._connection, theirs = Pipe()
        arguments = os.getpid(), theirs.fileno(), self._memory
        code = f"from deepfake_ray.processes.isolation import _serve; _serve(*{arguments})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        descriptors = (theirs.fileno(), self._memory)
        self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=descriptors, env=environment)
        theirs.close()
        try:
            self._connection.send((self._worker, self._argument, self._decoder_bytes))
            self._result(within_s=START_TIMEOUT_S)
        except (EOFError, ConnectionError):
            return False
        except WorkerDiedError:
            self._end()
            raise
        return True

    def __call__(self, work: Any) -> Any:
        """The worker's result for `work`."""
        if self._awaits_answer:
            # An interrupt or a death ended the last call: what the process would say next is of that call's work.
            self._end()
            self._start()
        suspects: set[int | None] = set()
        given_up: dict[int, str] = {}
        deaths = 0
        while True:
            try:
                self._awaits_answer = True
                self._connection.send((work, given_up))
                return self._result(watch=True)
            except (EOFError, ConnectionError):
                item, overdue = self._in_flight.item(), self._in_flight.seconds() >= self._timeout_s
                status = self._end()
            if item is None:
                deaths += 1
                if deaths >= MAX_UNEXPLAINED_DEATHS:
                    raise WorkerDiedError(f"{self._worker} died {deaths} times, the last time of {status}")
            elif overdue:
                given_up[item] = f"took longer than {self._timeout_s:g} s"
            elif item in suspects:
                given_up[item] = f"crashed the decoder's process ({status}), twice"
            suspects.add(item)
            self._start()

    def _result(self, *, watch: bool = False, within_s: float = float("inf")) -> Any:
        began = time.monotonic()
        while not self._connection.poll(SECONDS_BETWEEN_LOOKS):
            if time.monotonic() - began >= within_s:
                raise WorkerDiedError(f"{self._worker} did not start within {within_s:g} s")
            if watch and self._in_flight.seconds() >= self._timeout_s:
                raise EOFError
        succeeded, value = self._connection.recv()
        self._awaits_answer = False
        if not succeeded:
            raise value
        return value

    def _end(self) -> str:
        """Make sure that the process is dead; says of what it died."""
        self._connection.close()
        time.sleep(0.05)  # it may be on its way out: its own end tells more than ours
        if self._process.poll() is None:
            self._process.kill()
        status = self._process.wait()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def close(self) -> None:
        """End the process."""
        self._end()
        os.close(self._memory)


def _serve(parent: int, connection_fd: int, memory: int) -> None:
    """What the process runs."""
    threading.Thread(target=_die_with_parent, args=(parent,), daemon=True).start()
    connection = Connection(connection_fd)
    in_flight = _InFlight(memory)
    with suppress(EOFError):  # the parent has closed its end
        name, argument, decoder_bytes = connection.recv()
        module, attribute = name.split(":")
        worker = None
        with _failures_sent(connection):
            worker = getattr(importlib.import_module(module), attribute)(argument)
            if decoder_bytes is not None:
                memory_limit.limit(decoder_bytes)
            connection.send((True, None))
        while worker is not None:
            work, given_up = connection.recv()
            with _failures_sent(connection):
                connection.send((True, worker(work, Items(in_flight.at, given_up))))


@contextmanager
def _failures_sent(connection: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # pickle drops the traceback, and keeps notes
        connection.send((False, error))


def _die_with_parent(parent: int) -> None:
    """Else a killed parent's process would work on, beside the one of the resumed run."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
