"""Labels and scores -> numbers. scikit-learn's functions where it has them. Knows neither Ray nor torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from sklearn import metrics as sk

from deepfake_ray.bundle import p_fake_of
from deepfake_ray.ranking import Ranking
from deepfake_ray.schema import CLASSES, FAKE, REAL

FloatArray = NDArray[np.float64]


def at_threshold(labels: ArrayLike, p_fake: ArrayLike, threshold: float) -> dict[str, Any]:
    """What depends on the threshold; an image is called fake when p_fake >= threshold.

    Args:
        labels: int (N,), REAL or FAKE.
        p_fake: float (N,) in [0, 1].
        threshold: on p_fake.

    Returns:
        Numbers by name; `confusion_matrix` has true classes as rows and predicted ones as columns, real first.
    """
    y = np.asarray(labels)
    called = called_fake(p_fake, threshold)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        y, called, labels=[REAL, FAKE], zero_division=0.0
    )
    numbers: dict[str, Any] = {
        "accuracy": sk.accuracy_score(y, called),
        # Balanced accuracy is the mean of the recalls; sklearn's own warns where a class is absent.
        "balanced_accuracy": recall[support > 0].mean(),
        "mcc": sk.matthews_corrcoef(y, called),
        "specificity": recall[REAL],
    }
    for name, by_class in (("precision", precision), ("recall", recall), ("f1", f1)):
        numbers[f"{name}_macro"] = by_class.mean()
        numbers[f"{name}_weighted"] = np.average(by_class, weights=support)
        numbers |= {f"{name}_{label}": by_class[index] for index, label in enumerate(CLASSES)}
    numbers = {key: float(value) for key, value in numbers.items()}
    numbers["confusion_matrix"] = sk.confusion_matrix(y, called, labels=[REAL, FAKE]).tolist()
    return numbers


def called_fake(p_fake: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """The verdicts: REAL or FAKE, int (N,)."""
    return np.where(np.asarray(p_fake) >= threshold, FAKE, REAL)


def of_counts(counts: ArrayLike) -> dict[str, float]:
    """`at_threshold`'s numbers from the four cells of the confusion matrix, which may be weighted.

    Args:
        counts: float (4,): reals passed, reals accused, fakes passed, fakes found.
    """
    cells = np.asarray(counts, np.float64).reshape(2, 2)
    support, called, right, total = cells.sum(1), cells.sum(0), np.diag(cells), cells.sum()
    recall = _share(right, support)
    precision = _share(right, called)
    f1 = _share(2 * right, support + called)
    spread = np.sqrt(np.prod(support) * np.prod(called))
    found = {
        "accuracy": right.sum() / total,
        "balanced_accuracy": recall[support > 0].mean(),
        "mcc": np.linalg.det(cells) / spread if spread else 0.0,
        "specificity": recall[REAL],
    }
    for name, by_class in (("precision", precision), ("recall", recall), ("f1", f1)):
        found[f"{name}_macro"] = by_class.mean()
        found[f"{name}_weighted"] = by_class @ support / total
        found |= {f"{name}_{label}": by_class[index] for index, label in enumerate(CLASSES)}
    return {name: float(value) for name, value in found.items()}


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros(2), where=whole > 0)


def threshold_free(labels: ArrayLike, logits: ArrayLike, temperature: float) -> dict[str, float | None]:
    """What the scores alone decide, in the order of a report; None where both classes are needed and one is absent.

    roc_auc, average_precision and brier are scikit-learn's; the others are described at `ranking.Ranking`.
    """
    y, z = np.asarray(labels), np.asarray(logits, np.float64)
    found: dict[str, float | None] = dict(Ranking(y, z, temperature).figures())
    both = len(np.unique(y)) == 2
    found["roc_auc"] = float(sk.roc_auc_score(y, z)) if both else None
    found["average_precision"] = float(sk.average_precision_score(y, z)) if both else None
    found["brier"] = float(sk.brier_score_loss(y, expit(z / temperature), pos_label=FAKE))
    return {name: None if value is None or np.isnan(value) else value for name, value in found.items()}


def log_loss(labels: ArrayLike, logits: ArrayLike, temperature: float) -> float:
    """Mean cross-entropy in nats, from logits, so that no probability has to be clipped."""
    sign = np.where(np.asarray(labels) == FAKE, 1.0, -1.0)
    return float(-log_expit(sign * np.asarray(logits, np.float64) / temperature).mean())


def classification_report(labels: ArrayLike, p_fake: ArrayLike, threshold: float) -> str:
    """scikit-learn's table of precision, recall and F1."""
    called = called_fake(p_fake, threshold)
    text: str = sk.classification_report(
        np.asarray(labels), called, labels=[REAL, FAKE], target_names=CLASSES, digits=4, zero_division=0.0
    )
    return text


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """The temperature in [.5, 20] with the least log loss (Guo et al. 2017, arXiv 1706.04599).

    Classes that the validation split tells apart without an error would have one of 0, and every score would be 0 or
    1: the lower bound keeps some doubt.
    """
    found = minimize_scalar(
        lambda t: log_loss(labels, logits, float(np.exp(t))),
        bounds=(np.log(0.5), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def choose_thresholds(labels: ArrayLike, p_fake: ArrayLike) -> dict[str, float]:
    """The bundle's thresholds, from validation scores.

    `default` is .5; `balanced` has the greatest balanced accuracy; `fpr_1` and `fpr_5` are the lowest ones that call
    at most 1 % and 5 % of the real images fake. Each but the first lies midway between two neighbouring scores, so
    that rounding cannot move an image across it.
    """
    y, p = np.asarray(labels), np.asarray(p_fake, np.float64)
    scores = np.unique(p)
    # candidates[k] calls the scores from k on fake; the last calls none.
    candidates = np.concatenate([[scores[0] / 2], (scores[1:] + scores[:-1]) / 2, [(scores[-1] + 1) / 2]])
    fpr = 1 - np.searchsorted(np.sort(p[y == REAL]), candidates) / max(1, np.sum(y == REAL))
    tpr = 1 - np.searchsorted(np.sort(p[y == FAKE]), candidates) / max(1, np.sum(y == FAKE))
    chosen = {"default": 0.5, "balanced": float(candidates[np.argmax(tpr - fpr)])}
    for name, limit in (("fpr_1", 0.01), ("fpr_5", 0.05)):
        chosen[name] = float(candidates[np.argmax(fpr <= limit + 1e-12)])
    return chosen


@dataclass(frozen=True)
class Tuned:
    """What is chosen on a validation split, and the figures there, which flatter the model for that."""

    temperature: float
    thresholds: dict[str, float]
    figures: dict[str, float | None]


def tune(labels: ArrayLike, logits: ArrayLike) -> Tuned:
    """Temperature and thresholds of a model.

    Args:
        labels: int (N,), REAL or FAKE.
        logits: float (N,), before temperature.
    """
    temperature = fit_temperature(labels, logits)
    p_fake = p_fake_of(logits, temperature)  # as in scoring, to the bit: thresholds are values of it
    at_half = at_threshold(labels, p_fake, 0.5)
    figures = {
        **threshold_free(labels, logits, temperature),
        "accuracy": at_half["accuracy"],
        "balanced_accuracy": at_half["balanced_accuracy"],
    }
    return Tuned(temperature, choose_thresholds(labels, p_fake), figures)
