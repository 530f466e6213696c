"""The board on which rank 0 says how the training goes. Imports no torch, which would take its process seconds."""

from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from deepfake_ray.training.history import HistoryRow


@ray.remote(num_cpus=0)
class Board:
    """Carries what rank 0 says to the driver, which draws the bar and keeps history.csv current."""

    def __init__(self) -> None:
        self._now: dict[str, Any] = {}
        self._history: list[HistoryRow] = []
        self._failure = ""

    def update(self, now: dict[str, Any]) -> None:
        """Where the run is."""
        self._now = now

    def end_epoch(self, history: "list[HistoryRow]") -> None:
        """The history so far; whole, so that a resumed worker's is right too."""
        self._history = history

    def fail(self, message: str) -> None:
        """The run ends here, on purpose: starting it again would end the same way."""
        self._failure = message

    def read(self) -> tuple[dict[str, Any], "list[HistoryRow]", str]:
        """Now, the history, and why the run failed, if it did."""
        return self._now, self._history, self._failure
