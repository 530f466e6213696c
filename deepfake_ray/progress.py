"""Progress of a long stage: a bar in a terminal, a line every few seconds in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows images done, images/s, errors and time left of one stage. A context manager."""

    def __init__(self, stage: str, total: int, *, interval_s: float = SECONDS_BETWEEN_LINES):
        self.stage = stage
        self.total = total
        self.done = 0
        self.num_errors = 0
        self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None
        """When the first images were done, and how many: starting up is no part of the rate."""
        self._interval_s = interval_s
        self._bar = tqdm(total=total, desc=stage, unit=" images", dynamic_ncols=True) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done:
            self._line()

    def update(self, done: int, num_errors: int = 0, note: str = "") -> None:
        """Set how many images are done, and how many of them could not be read."""
        if self._first is None and done:
            self._first = time.monotonic(), done
        advanced = done - self.done
        self.done, self.num_errors = done, num_errors
        if self._bar is not None:
            self._bar.update(advanced)
            self._bar.set_postfix_str(note + (f" {num_errors} errors" if num_errors else ""))
        elif time.monotonic() - self._last_line >= self._interval_s:
            self._line(note)

    def _line(self, note: str = "") -> None:
        self._last_line = time.monotonic()
        speed = ""
        if self._first is not None and self.done > self._first[1]:
            rate = (self.done - self._first[1]) / (self._last_line - self._first[0])
            speed = f", {rate:,.0f} images/s"
            if self.done < self.total:
                speed += f", {duration((self.total - self.done) / rate)} left"
        say(
            f"{self.stage}: {self.done:,} of {self.total:,} images, {self.num_errors:,} errors{speed}"
            f"{', ' + note if note else ''}"
        )


def say(line: str) -> None:
    """A line for the user; keeps clear of a bar that is being drawn."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def show(text: str) -> None:
    """A result, on standard output, where programs look for it; keeps clear of a bar that is being drawn."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """`75` -> `1 min 15 s`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
