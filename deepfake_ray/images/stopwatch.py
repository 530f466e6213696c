"""Seconds that a thread spends in each stage of its work."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by stage. For one thread."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Entered for as long as the thread is at a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """stage -> seconds since the last call."""
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken
