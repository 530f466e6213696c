"""What Prometheus can read of a run, beside Ray's own metrics."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

OK = "ok"


class RunMetrics:
    """`ray_deepfake_ray_images_total`, by `outcome` (ok, or why not), and `ray_deepfake_ray_images_per_s`.

    Args:
        stage: the label `stage` of both: score, or train.
        run: the label `run`: the run's id, or its output.
    """

    def __init__(self, stage: str, run: str):
        tags = {"stage": stage, "run": run}
        self._images = Counter("deepfake_ray_images", "Images that are done.", (*tags, "outcome"))
        self._rate = Gauge("deepfake_ray_images_per_s", "Images a second, since the first was begun.", tuple(tags))
        for metric in (self._images, self._rate):
            metric.set_default_tags(tags)
        self._counted: dict[str, int] = {}

    def update(self, done: int, errors: Mapping[str, int], images_per_s: float | None) -> None:
        """Set how many images are done since the run began, how many of them are errors, by code, and their rate
        (`console.Rate`)."""
        for outcome, number in {OK: done - sum(errors.values()), **errors}.items():
            more = number - self._counted.get(outcome, 0)
            if more > 0:  # a training that lost a worker goes back some steps
                self._images.inc(more, {"outcome": outcome})
                self._counted[outcome] = number
        if images_per_s is not None:
            self._rate.set(images_per_s)
