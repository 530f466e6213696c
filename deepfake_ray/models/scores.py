"""What a score is: logits, their probability, and the thresholds that make verdicts of them.

Verdicts compare logits as they are written, float32; never p_fake, which is rounded on another scale and is 1 for
every logit above some 17 temperatures. Knows neither Ray nor torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepfake_ray.errors import UserError
from deepfake_ray.schema import BF16, FP32, INT8

LOWEST, HIGHEST = (float(limit) for limit in (np.finfo(np.float32).min, np.finfo(np.float32).max))
"""The logits of the thresholds 0 and 1: every image is called fake, and none. Finite, so that JSON can hold them."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """An image is called fake when its logit is not below `logit`."""

    logit: float
    """Before temperature; a value of float32, as the logits that it is compared with."""
    p_fake: float
    """sigmoid(logit / temperature), for people; or the number that was given as the threshold."""
    num_real: int | None = None
    num_fake: int | None = None
    """Validation images that it was chosen on; None where that is unknown, or where it was chosen on none."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | float, temperature: float) -> "Threshold":
        """Of a bundle's model.json; those of format 1 are plain numbers on p_fake.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        if not isinstance(value, Mapping):
            return threshold_at(value, temperature)
        found = cls(**value)
        if float(np.float32(found.logit)) != found.logit or not math.isfinite(found.logit):
            raise ValueError(f"the threshold {found.logit!r} is no finite float32")
        return found


def p_fake_of(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """sigmoid(logit / temperature), without overflow; NaN for NaN."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64) / temperature))


def format_p_fake(p_fake: float, digits: int = 4) -> str:
    """For people: with so many significant digits of how far it is from the nearer of 0 and 1.

    `.4g` would show .99998 as 1, which calls nothing fake.
    """
    doubt = 1 - p_fake
    if not 0 < doubt < 0.5:
        return f"{p_fake:.{digits}g}"
    return f"{p_fake:.{digits - 1 - math.floor(math.log10(doubt))}f}".rstrip("0")


def logit_of(p_fake: float, temperature: float) -> float:
    """The float32 logit that has this p_fake; for 0 and 1, the least and the greatest there is.

    Raises:
        ValueError: not in [0, 1].
    """
    if not 0 <= p_fake <= 1:
        raise ValueError(f"{p_fake} is not in [0, 1]")
    if p_fake in (0, 1):
        return HIGHEST if p_fake else LOWEST
    return float(np.float32(temperature * (math.log(p_fake) - math.log1p(-p_fake))))


def threshold_at(number: float, temperature: float) -> Threshold:
    """The threshold that somebody gave as a p_fake."""
    return Threshold(logit=logit_of(number, temperature), p_fake=float(number))


def threshold_of(logit: float, temperature: float, num_real: int, num_fake: int) -> Threshold:
    """The threshold at a float32 logit that was chosen on so many images."""
    p_fake = float(p_fake_of(logit, temperature))
    return Threshold(logit=float(logit), p_fake=p_fake, num_real=num_real, num_fake=num_fake)


def threshold_of_rows(logits: ArrayLike, p_fake: ArrayLike, number: float) -> Threshold:
    """The threshold of an evaluation that compared p_fake with a number, as it was until the logits were: the lowest
    logit that it called fake.
    """
    fake = np.asarray(logits, np.float32)[np.asarray(p_fake) >= number]
    return Threshold(logit=float(fake.min()) if len(fake) else HIGHEST, p_fake=float(number))


def is_predicted_fake(logits: ArrayLike, threshold: Threshold) -> NDArray[np.bool_]:
    """The verdicts on logits, (N,); they are compared as float32, which is what is written of them."""
    return np.asarray(logits, np.float32) >= np.float32(threshold.logit)


def require_same_precision(where: str, before: str | None, now: str) -> None:
    """Make sure that scores of two runs may stand side by side.

    Args:
        where: says which scores: `--resume goes on with the same run`, and the like.
        before: the precision that the other run noted; None, if it noted none.
        now: of this run.

    Raises:
        UserError: they may not.
    """
    if before != now:
        was = "was not noted by the version that began it" if before is None else f"was {before}"
        remedy = f"add --precision {before}, or " if before in (BF16, FP32) and now != INT8 else ""
        raise UserError(f"{where}: precision {was} and is now {now}; {remedy}score all images in a new output.")
