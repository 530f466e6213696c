"""Ctrl-C and SIGTERM, in one place for every job: what the user is told, and with which code the process ends.

A handler in Python runs when the main thread is back in the interpreter, which may be in a minute; and others put
theirs in its place: `ray.init` for SIGTERM, Ray Train for SIGINT, which it keeps after the training, swallows, and
answers with exit code 0. So a thread is told of each signal by the interpreter itself, whoever handles it.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, Self

from deepfake_ray.console import say
from deepfake_ray.starting import SIGNALS, end_at_once

STOP, CATCH_UP = b"\x00", b"\xff"
"""No signals: what the thread is told beside their numbers."""
SECONDS_TO_END = 20.0
"""From the first signal on; then the process ends, whatever it is at."""
SECONDS_OF_ONE_SIGNAL = 0.5
"""`ray job stop` sends SIGTERM to the group and to the process: that is one."""

_active: "Interrupts | None" = None


class Interrupts:
    """A context manager of the main thread: from the first SIGINT or SIGTERM on, the job ends with 128 + its number.

    The first one is told at once, and raises KeyboardInterrupt in the main thread, so that what is open is closed; a
    second one ends the process there and then. Ray's processes on this machine end with the one that started them.

    Args:
        advice: what the line says after the word: what is there, and how to go on.
    """

    def __init__(self, advice: Callable[[], str]):
        self.advice = advice
        self._number: int | None = None
        self._came_at = 0.0
        self._is_raised = False
        self._code: int | None = None
        self._caught_up = threading.Event()

    def code(self) -> int | None:
        """The exit code that belongs to the signal that came, which is told by now; None if none came."""
        self._caught_up.clear()
        os.write(self._writer, CATCH_UP)
        self._caught_up.wait(1.0)
        return None if self._number is None else 128 + self._number

    def __enter__(self) -> Self:
        global _active
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._thread.start()
        _active = self
        self.own()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        _active = None
        if self._number is not None:
            return  # the process is to end, whatever threads it still waits for
        for number, handler in self._handlers.items():
            # Where nothing else handled them before: what is left of the process then ends with the job's code.
            signal.signal(number, self._end_with_code if handler is end_at_once else handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._writer, STOP)
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def own(self) -> None:
        """Take the signals (back) from who else handles them."""
        for number in SIGNALS:
            signal.signal(number, self._raise)

    def over(self, code: int) -> None:
        """The job has ended with this code: a signal that comes now ends the rest at once, and changes nothing."""
        self._code = code

    def _end_with_code(self, *_: object) -> NoReturn:
        os._exit(self._code or 0)

    def _raise(self, number: int, _: FrameType | None) -> None:
        if self._code is None and not self._is_raised:
            self._is_raised = True
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while True:
            timeout = SECONDS_TO_END - (time.monotonic() - self._came_at) if self._came_at else None
            ready, _, _ = select.select([self._reader], [], [], timeout and max(0.0, timeout))
            if not ready:
                self._end()
            for number in os.read(self._reader, 64):
                if number == STOP[0]:
                    return
                if number == CATCH_UP[0]:
                    self._caught_up.set()
                elif number in SIGNALS:
                    self._received(number)

    def _received(self, number: int) -> None:
        if self._code is not None:
            self._end()
        if self._came_at:
            if time.monotonic() - self._came_at >= SECONDS_OF_ONE_SIGNAL:
                self._end()
            return
        self._came_at, self._number = time.monotonic(), number
        try:
            advice = self.advice()
        except Exception as error:  # a storage that does not answer must not keep the line back
            advice = f"the same command with --resume goes on from what is written ({error})"
        say(f"{SIGNALS[signal.Signals(number)]}: {advice}")

    def _end(self) -> NoReturn:
        sys.stderr.flush()
        os._exit(128 + (self._number or 0) if self._code is None else self._code)


def is_job() -> bool:
    """Whether this process is a job of the command line."""
    return _active is not None


def own() -> None:
    """Take the signals back, after something that has put handlers of its own in place; nothing outside a job."""
    if _active is not None and threading.current_thread() is threading.main_thread():
        _active.own()


def advise(advice: Callable[[], str]) -> None:
    """What an interruption says from here on; nothing outside a job of the command line."""
    if _active is not None:
        _active.advice = advice
