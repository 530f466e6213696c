"""Labels and scores -> numbers, which are scikit-learn's where it has them. Knows neither Ray nor torch."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn import metrics as sk

from deepfake_ray.evaluation.ranking import Ranking
from deepfake_ray.models.scores import Threshold, is_predicted_fake
from deepfake_ray.schema import CLASSES, FAKE, REAL

FloatArray = NDArray[np.float64]
AVERAGES = ("macro", "weighted")


def figures_at_threshold(labels: ArrayLike, logits: ArrayLike, threshold: Threshold) -> dict[str, Any]:
    """What depends on the threshold.

    Args:
        labels: int (N,), REAL or FAKE; N at least 1.
        logits: float32 (N,).
        threshold: an image is called fake when its logit is not below the threshold's.

    Returns:
        `of_counts`, None where it is undefined; `confusion_matrix` has true classes as rows and predicted ones as
        columns, real first.
    """
    cell = 2 * np.asarray(labels) + is_predicted_fake(logits, threshold)
    counts = np.bincount(cell, minlength=4)
    numbers: dict[str, Any] = {
        name: None if np.isnan(value) else float(value) for name, value in figures_from_counts(counts).items()
    }
    numbers["confusion_matrix"] = counts.reshape(2, 2).tolist()
    return numbers


def figures_from_counts(counts: ArrayLike) -> dict[str, FloatArray]:
    """accuracy, balanced_accuracy, mcc, specificity; precision, recall, f1, each macro, weighted, and of either class.

    They are scikit-learn's, but NaN where they are undefined: precision of a class that no image is called (as
    with `zero_division=nan`), and all figures of a class without an image, where scikit-learn's are 0 or leave that
    class out. A macro average is undefined where one of its classes is, and so is balanced accuracy; mcc where all
    images are of one class or called one. A weighted average leaves out classes without an image.

    Args:
        counts: float (..., 4), the cells of confusion matrices, which may be weighted: reals passed, reals accused,
            fakes passed, fakes found.

    Returns:
        Figures (...).
    """
    counts = np.asarray(counts, np.float64)
    cells = counts.reshape(*counts.shape[:-1], 2, 2)
    support, called = cells.sum(-1), cells.sum(-2)
    right, total = np.diagonal(cells, axis1=-2, axis2=-1), cells.sum((-2, -1))
    there = support > 0
    recall = _share(right, support, there)
    found = {
        "accuracy": right.sum(-1) / total,
        "balanced_accuracy": recall.mean(-1),
        "mcc": _mcc(cells, support, called),
        "specificity": recall[..., REAL],
    }
    precision = _share(right, called, there & (called > 0))
    f1 = _share(2 * right, support + called, there)
    for name, by_class in (("precision", precision), ("recall", recall), ("f1", f1)):
        found[f"{name}_macro"] = by_class.mean(-1)
        found[f"{name}_weighted"] = np.where(there, by_class * support, 0).sum(-1) / total
        found |= {f"{name}_{label}": by_class[..., index] for index, label in enumerate(CLASSES)}
    return found


def _mcc(cells: FloatArray, support: FloatArray, called: FloatArray) -> FloatArray:
    # The root of each factor: their product can pass the largest integer, and the largest float.
    spread = np.sqrt(support).prod(-1) * np.sqrt(called).prod(-1)
    moved = cells[..., 0, 0] * cells[..., 1, 1] - cells[..., 0, 1] * cells[..., 1, 0]
    return _share(moved, spread, spread > 0)


def _share(part: FloatArray, whole: FloatArray, defined: NDArray[np.bool_]) -> FloatArray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=defined)


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


def classification_report(labels: ArrayLike, logits: ArrayLike, threshold: Threshold) -> str:
    """scikit-learn's table of precision, recall and F1, with `undefined` in place of its zeros (see `of_counts`)."""
    at = figures_at_threshold(labels, logits, threshold)
    support = np.sum(at["confusion_matrix"], axis=1)
    names = ("precision", "recall", "f1")
    rows = [(label, [at[f"{name}_{label}"] for name in names], support[index]) for index, label in enumerate(CLASSES)]
    averages = [(f"{kind} avg", [at[f"{name}_{kind}"] for name in names], support.sum()) for kind in AVERAGES]
    head = " " * 13 + "".join(f" {name:>9}" for name in ("precision", "recall", "f1-score", "support"))
    accuracy = f"{'accuracy':>12}{'':21} {_cell(at['accuracy'])} {support.sum():>9}"
    by_class, average = ("\n".join(_row(*row) for row in part) for part in (rows, averages))
    return f"{head}\n\n{by_class}\n\n{accuracy}\n{average}\n"


def _row(name: str, values: list[float | None], support: int) -> str:
    return f"{name:>12} " + "".join(f" {_cell(value)}" for value in values) + f" {support:>9}"


def _cell(value: float | None) -> str:
    return f"{'undefined' if value is None else format(value, '.4f'):>9}"
