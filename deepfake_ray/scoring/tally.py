"""What the drivers of a scoring run have done, one after the other: in run.json, each for itself and all together."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from deepfake_ray.console import Rate
from deepfake_ray.scoring.spec import STAGES, Report

SECONDS_BETWEEN_NOTES = 30.0
"""What a killed driver has done since its last note is in no figure."""


class Tally:
    """Counts for this driver, and adds up what is in run.json of earlier ones.

    An image that was scored by two drivers, because the first was killed before its chunk was written, counts twice.

    Args:
        run: run.json, whose figures are kept up to date.
        write: puts it into its place.
        has_profile: whether to write where the time went.
    """

    def __init__(self, run: dict[str, Any], write: Callable[[dict[str, Any]], None], *, has_profile: bool):
        self._run, self._write, self._has_profile = run, write, has_profile
        self._began = self._noted = time.monotonic()
        self.rate = Rate()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._ray_data: list[str] = []
        self._mine: dict[str, Any] = {
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "num_images": 0,
            "num_known": 0,
            "scoring_s": 0.0,
        }
        run["drivers"] = [*run.get("drivers", ()), self._mine]
        self._sum_up()

    def add(self, report: Report) -> None:
        """Count a chunk."""
        self._mine["num_images"] += report.num_images
        self._mine["num_known"] += report.num_known
        self.rate.update(self._mine["num_images"], report.started_at, report.ended_at)
        self._mine["scoring_s"] = self.rate.seconds
        for stage, seconds in report.seconds.items():
            self._seconds[stage] += seconds
        if time.monotonic() - self._noted >= SECONDS_BETWEEN_NOTES:
            self.note()

    def add_statistics(self, ray_data: str) -> None:
        """Keep Ray Data's statistics of an execution, for the profile."""
        self._ray_data.append(ray_data)

    def note(self) -> None:
        """Bring run.json up to date."""
        self._noted = time.monotonic()
        self._sum_up()
        self._write(self._run)

    def _sum_up(self) -> None:
        self._mine["wall_s"] = time.monotonic() - self._began
        if self._has_profile:
            self._mine["seconds_by_stage"] = dict(self._seconds)
            self._mine["ray_data"] = self._ray_data
        drivers = self._run["drivers"]
        num_images, scoring_s = (_total(drivers, name) for name in ("num_images", "scoring_s"))
        self._run |= {
            "images_per_s": num_images / max(scoring_s, 1e-9) if num_images else None,
            "num_known": _total(drivers, "num_known"),
            "wall_s": _total(drivers, "wall_s"),
        }
        if self._has_profile:
            self._run["profile"] = {
                "stages": _stages(drivers),
                "ray_data": [one for driver in drivers for one in driver.get("ray_data", ())],
            }


def _total(drivers: Iterable[dict[str, Any]], name: str) -> Any:
    return sum(driver[name] for driver in drivers)


def _stages(drivers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the drivers that measured them: `{"stage", "seconds", "share"}` of each."""
    measured = [driver["seconds_by_stage"] for driver in drivers if "seconds_by_stage" in driver]
    seconds = {stage: sum(one[stage] for one in measured) for stage in STAGES}
    total = sum(seconds.values()) or 1.0
    return [
        {"stage": stage, "seconds": round(took, 3), "share": round(took / total, 4)} for stage, took in seconds.items()
    ]
