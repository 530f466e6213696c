"""Progress of a long stage: a bar in a terminal, a line every few seconds in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} images [{elapsed}{postfix}]"
"""tqdm's without its rate, which counts the start-up."""
_said: set[str] = set()
"""What this process has warned of, by `Dispensable`."""


class Rate:
    """Images a second: those done, over the seconds from the start of the first of them to the last result.

    The one meaning that it has in the bar, in a log's lines, in run.json and for Prometheus: Ray's start, and that of
    the actors with their models, is no part of it. Where nobody says when work began (a training is looked at twice a
    second), it counts from the first result on, without that one's images. history.csv has that of the steps of each
    epoch, without its validation.
    """

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._ended_at = 0.0
        self._num_before, self._num_done = 0, 0

    def update(self, done: int, began_at: float | None = None, ended_at: float | None = None) -> None:
        """Set how many images are done.

        Args:
            done: since the stage began.
            began_at: when the latest result's first image was begun, by the clock of whoever did it; so for all
                results, or for none.
            ended_at: when that result was there.
        """
        if began_at is None:
            now = time.monotonic()
            if self._began_at is None and done:
                self._began_at, self._num_before = now, done
            self._ended_at = now
        else:
            self._began_at = began_at if self._began_at is None else min(self._began_at, began_at)
            self._ended_at = max(self._ended_at, ended_at or began_at)
        self._num_done = done

    @property
    def seconds(self) -> float:
        """From the start of the first image to the last result."""
        return 0.0 if self._began_at is None else max(0.0, self._ended_at - self._began_at)

    @property
    def per_s(self) -> float | None:
        """None before there is anything to measure."""
        if self._began_at is None or self._num_done <= self._num_before or self._ended_at <= self._began_at:
            return None
        return (self._num_done - self._num_before) / (self._ended_at - self._began_at)


class Progress:
    """Shows images done, images/s, errors and time left of one stage. A context manager.

    Args:
        stage: its name.
        total: images.
        rate: of the stage, if somebody else keeps it up to date; else it is that of the results as they are shown.
        interval_s: between two lines of a log.
    """

    def __init__(self, stage: str, total: int, *, rate: Rate | None = None, interval_s: float = SECONDS_BETWEEN_LINES):
        self.stage = stage
        self.total = total
        self.done = 0
        self.num_errors = 0
        self.rate = rate or Rate()
        self._is_rate_ours = rate is None
        self._last_line = time.monotonic()
        self._interval_s = interval_s
        self._bar = tqdm(total=total, desc=stage, bar_format=BAR, dynamic_ncols=True) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done and kind is not KeyboardInterrupt:  # the last line is that of the interruption
            self._line()

    def update(self, done: int, num_errors: int = 0, note: str = "") -> None:
        """Set how many images are done, and how many of them could not be read."""
        if self._is_rate_ours:
            self.rate.update(done)
        advanced = done - self.done
        self.done, self.num_errors = done, num_errors
        if self._bar is not None:
            shown = [f"{num_errors:,} errors" if num_errors else "", self._speed(), note]
            self._bar.set_postfix_str(", ".join(filter(None, shown)), refresh=False)
            self._bar.update(advanced)
        elif time.monotonic() - self._last_line >= self._interval_s:
            self._line(note)

    def _line(self, note: str = "") -> None:
        self._last_line = time.monotonic()
        shown = [f"{self.done:,} of {self.total:,} images", f"{self.num_errors:,} errors", self._speed(), note]
        say(f"{self.stage}: {', '.join(filter(None, shown))}")

    def _speed(self) -> str:
        rate = self.rate.per_s
        if rate is None:
            return ""
        left = f", {duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
        return f"{rate:,.0f} images/s{left}"


def say(line: str) -> None:
    """A line for the user; keeps clear of a bar that is being drawn."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def show(text: str) -> None:
    """A result, on standard output, where programs look for it; keeps clear of a bar that is being drawn."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class Dispensable:
    """A context manager for what may fail and must not cost the job: warns once per process, and goes on after it.

    Args:
        problem: what cannot be done.
        consequence: of that, for the user.
    """

    def __init__(self, problem: str, consequence: str):
        self._problem, self._consequence = problem, consequence

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        if self._problem not in _said:
            _said.add(self._problem)
            say(f"warning: {self._problem} ({type(error).__name__}: {error}): {self._consequence}")
        return True


def duration(seconds: float) -> str:
    """`75` -> `1 min 15 s`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
