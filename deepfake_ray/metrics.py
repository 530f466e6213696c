"""Labels and scores -> numbers. scikit-learn's functions where it has them. Knows neither Ray nor torch."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn import metrics as sk

from deepfake_ray.ranking import Ranking
from deepfake_ray.schema import CLASSES, FAKE, REAL
from deepfake_ray.scores import Threshold, called_fake

FloatArray = NDArray[np.float64]


def at_threshold(labels: ArrayLike, logits: ArrayLike, threshold: Threshold) -> dict[str, Any]:
    """What depends on the threshold.

    Args:
        labels: int (N,), REAL or FAKE.
        logits: float (N,), before temperature.
        threshold: an image is called fake from its logit on.

    Returns:
        Numbers by name; `confusion_matrix` has true classes as rows and predicted ones as columns, real first.
    """
    y = np.asarray(labels)
    called = called_fake(logits, threshold).astype(np.int64)
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


def classification_report(labels: ArrayLike, logits: ArrayLike, threshold: Threshold) -> str:
    """scikit-learn's table of precision, recall and F1."""
    called = called_fake(logits, threshold).astype(np.int64)
    text: str = sk.classification_report(
        np.asarray(labels), called, labels=[REAL, FAKE], target_names=CLASSES, digits=4, zero_division=0.0
    )
    return text
