"""Whether too many images of a scoring run cannot be read. Knows no Ray."""

from collections import Counter, deque
from collections.abc import Mapping

from deepfake_ray.errors import OF_THE_STORAGE, JobError
from deepfake_ray.scoring.spec import MIN_IMAGES_TO_STOP, Report


class ErrorWatch:
    """Stops a run in which too many images cannot be read."""

    def __init__(self, max_error_share: float):
        self._max_share = max_error_share
        self.done = 0
        self.errors: Counter[str] = Counter()
        self._recent: deque[Report] = deque()

    def add(self, report: Report) -> None:
        """Count a chunk.

        Raises:
            JobError: see `--max-error-share`.
        """
        self.done += report.num_images
        self.errors += report.errors_by_code
        self._recent.append(report)
        while sum(one.num_images for one in self._recent) - self._recent[0].num_images >= MIN_IMAGES_TO_STOP:
            self._recent.popleft()
        recent = sum(one.num_images for one in self._recent)
        failed = sum(one.errors_by_code[code] for one in self._recent for code in OF_THE_STORAGE)
        if recent >= MIN_IMAGES_TO_STOP and failed > self._max_share * recent:
            raise JobError(
                f"stopped: of the last {recent:,} images the storage failed to give {failed:,} "
                f"({describe_errors(self.errors)}), over --max-error-share {self._max_share:g}; the last was "
                f"{report.example}. Mend the cause and add --resume: they are tried again."
            )
        if self.done >= MIN_IMAGES_TO_STOP and self.errors.total() > self._max_share * self.done:
            raise JobError(
                f"stopped: {self.errors.total():,} of {self.done:,} images cannot be read "
                f"({describe_errors(self.errors)}), over --max-error-share {self._max_share:g}; the last was "
                f"{report.example}. If these are the images that you mean, raise the share and add --resume."
            )


def describe_errors(errors: Mapping[str, int]) -> str:
    """How many of each, the most first."""
    ordered = sorted(errors.items(), key=lambda item: -item[1])
    return ", ".join(f"{code} {number:,}" for code, number in ordered)
