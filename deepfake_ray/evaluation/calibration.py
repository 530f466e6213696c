"""What is chosen on the validation split: the temperature, and the thresholds. Knows neither Ray nor torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit

from deepfake_ray.evaluation import metrics
from deepfake_ray.models.scores import HIGHEST, LOWEST, Threshold, threshold_at, threshold_of
from deepfake_ray.schema import FAKE, REAL

MAX_FPR = {"fpr_1": 0.01, "fpr_5": 0.05}
"""The thresholds that promise something, and the share of the real images that they may call fake."""
MIN_REALS = {"fpr_1": 300, "fpr_5": 60}
"""Fewer real validation images say too little about such a share: three times as many as make one mistake of it. By the
rule of three, of 300 reals without a mistake one knows that less than 1 % are mistaken."""

FloatArray = NDArray[np.float64]


def log_loss(labels: ArrayLike, logits: ArrayLike, temperature: float, weights: FloatArray | None = None) -> float:
    """Mean cross-entropy in nats, from logits, so that no probability has to be clipped; images may have weights."""
    sign = np.where(np.asarray(labels) == FAKE, 1.0, -1.0)
    return float(np.average(-log_expit(sign * np.asarray(logits, np.float64) / temperature), weights=weights))


def fit_temperature(labels: ArrayLike, logits: ArrayLike, prior: Sequence[float] | None = None) -> float:
    """The temperature in [.5, 20] with the least log loss (Guo et al. 2017, arXiv 1706.04599).

    Classes that the validation split tells apart without an error would have one of 0, and every score would be 0 or
    1: the lower bound keeps some doubt. No bias is fitted: the model has that of the loss that it was trained with.

    Args:
        labels: int (N,), REAL or FAKE.
        logits: float (N,).
        prior: the shares of real and fake images that p_fake is to be for, which are those that the loss saw; images
            count so that the classes have these shares. None: those that they have.
    """
    y = np.asarray(labels)
    weights = np.ones(len(y))
    if prior is not None:
        for label in (REAL, FAKE):
            weights[y == label] = prior[label] / max(1, np.sum(y == label))
    found = minimize_scalar(
        lambda t: log_loss(y, logits, float(np.exp(t)), weights),
        bounds=(np.log(0.5), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def choose_thresholds(labels: ArrayLike, logits: ArrayLike, temperature: float) -> dict[str, Threshold]:
    """The bundle's thresholds, from the float32 logits of the validation split.

    `default` is a p_fake of .5; `balanced` has the greatest balanced accuracy. `fpr_1` and `fpr_5` find the most fakes
    that can be found while at most 1 % and 5 % of the real images are called fake; of thresholds that find as many,
    the one that accuses the fewest reals: a lower one, among the last reals, would buy nothing. Each but the first lies
    in the middle of the gap between two neighbouring logits, farthest from the images on either side.

    Args:
        labels: int (N,), REAL or FAKE; N at least 1.
        logits: float32 (N,), before temperature, as scoring writes them.
        temperature: of the bundle.
    """
    y, z = np.asarray(labels), np.asarray(logits, np.float32)
    candidates = _middles(np.unique(z), temperature)
    reals, fakes = (np.sort(z[y == label]) for label in (REAL, FAKE))
    accused = len(reals) - np.searchsorted(reals, candidates)  # both fall, from all to none
    found = len(fakes) - np.searchsorted(fakes, candidates)
    chosen = {"balanced": candidates[np.argmax(found * max(1, len(reals)) - accused * max(1, len(fakes)))]}
    for name, limit in MAX_FPR.items():
        allowed = accused <= int(limit * len(reals) + 1e-9)
        chosen[name] = candidates[np.flatnonzero(found == found[allowed].max())[-1]]
    return {"default": threshold_at(0.5, temperature)} | {
        name: threshold_of(float(logit), temperature, len(reals), len(fakes)) for name, logit in chosen.items()
    }


def _middles(values: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """float32 (N,) different logits in order -> (N + 1,): the k-th calls those from the k-th on fake, the last none.

    Below the lowest and above the highest logit there is no gap; there the threshold lies a temperature away, where the
    odds are e times as long.
    """
    wide = values.astype(np.float64)
    ends = np.clip([wide[0] - temperature, wide[-1] + temperature], LOWEST, HIGHEST).astype(np.float32)
    middles = ((wide[:-1] + wide[1:]) / 2).astype(np.float32)
    # Between neighbouring float32 there is none: then it is the upper one, which counts as fake.
    middles = np.where(middles > values[:-1], middles, values[1:])
    above = np.maximum(ends[1], np.nextafter(values[-1], np.float32(np.inf)))
    return np.concatenate([ends[:1], middles, [above]]).astype(np.float32)


@dataclass(frozen=True)
class Tuned:
    """What is chosen on a validation split, and the figures there, which flatter the model for that."""

    temperature: float
    thresholds: dict[str, Threshold]
    figures: dict[str, float | None]


def tune(labels: ArrayLike, logits: ArrayLike, prior: Sequence[float] | None = None) -> Tuned:
    """Temperature and thresholds of a model.

    Args:
        labels: int (N,), REAL or FAKE.
        logits: float32 (N,), before temperature, as scoring writes them.
        prior: see `fit_temperature`.
    """
    temperature = fit_temperature(labels, logits, prior)
    thresholds = choose_thresholds(labels, logits, temperature)
    at_half = metrics.figures_at_threshold(labels, logits, thresholds["default"])
    figures = {
        **metrics.threshold_free(labels, logits, temperature),
        "accuracy": at_half["accuracy"],
        "balanced_accuracy": at_half["balanced_accuracy"],
    }
    return Tuned(temperature, thresholds, figures)


def promises_not_kept(thresholds: dict[str, Threshold]) -> list[str]:
    """Warnings of thresholds that were chosen on too few real images to promise what their names say."""
    return [
        f"{name} was chosen on {threshold.num_real:,} real validation images and promises nothing: it takes "
        f"{MIN_REALS[name]}; add some, or use another threshold"
        for name, threshold in thresholds.items()
        if name in MIN_REALS and threshold.num_real is not None and threshold.num_real < MIN_REALS[name]
    ]
