"""Figures that scores decide without a threshold, for any weights of the images. Knows neither Ray nor torch.

With all weights 1 they are scikit-learn's; with the counts of a resample they are those of the resample, without
sorting again, which is what makes a bootstrap cheap.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from deepfake_ray.schema import FAKE

ECE_BINS = 15
"""Equal-width bins of p_fake, as in Guo et al. 2017 (arXiv 1706.04599)."""
OPERATING_POINTS = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}

FloatArray = NDArray[np.float64]


class Ranking:
    """Images in descending order of their scores."""

    def __init__(self, labels: ArrayLike, logits: ArrayLike, temperature: float):
        """Sort once.

        Args:
            labels: int (N,), REAL or FAKE; N at least 1.
            logits: float (N,), before temperature.
            temperature: of the bundle.
        """
        y, z = np.asarray(labels) == FAKE, np.asarray(logits, np.float64)
        self._order = np.argsort(-z, kind="stable")
        self._fake = y[self._order]
        ranked = z[self._order]
        # A threshold lies between two different scores: images of equal score are called the same.
        self._ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        p_fake = expit(ranked / temperature)
        self._squares = (p_fake - self._fake) ** 2
        self._losses = -log_expit(np.where(self._fake, ranked, -ranked) / temperature)
        self._gaps = p_fake - self._fake
        self._bins = np.minimum((p_fake * ECE_BINS).astype(int), ECE_BINS - 1)

    def figures(self, weights: FloatArray | None = None) -> dict[str, float]:
        """roc_auc, average_precision, eer, tpr_at_fpr_1, tpr_at_fpr_5 (NaN without both classes), brier, log_loss, ece.

        `eer` is the rate at which as many reals are accused as fakes pass, interpolated on the ROC's segments;
        `tpr_at_fpr_*` the greatest share of the fakes found while at most that share of the reals is accused.

        Args:
            weights: float (N,), at least 0, in the order of the labels; default all 1.
        """
        w = np.ones(len(self._order)) if weights is None else np.asarray(weights, np.float64)[self._order]
        total = w.sum()
        per_bin = np.bincount(self._bins, weights=w * self._gaps, minlength=ECE_BINS)
        return {
            **self._of_the_curve(w),
            "brier": float(w @ self._squares / total),
            "log_loss": float(w @ self._losses / total),
            "ece": float(np.abs(per_bin).sum() / total),
        }

    def _of_the_curve(self, w: FloatArray) -> dict[str, float]:
        found = np.cumsum(w * self._fake)[self._ends]
        accused = np.cumsum(w * ~self._fake)[self._ends]
        if not found[-1] or not accused[-1]:
            return dict.fromkeys(("roc_auc", "average_precision", "eer", *OPERATING_POINTS), float("nan"))
        tpr = np.append(0.0, found / found[-1])
        fpr = np.append(0.0, accused / accused[-1])
        precision = found / np.maximum(found + accused, 1e-300)
        # fpr - fnr rises from -1 to 1 along the curve; the segment where it crosses 0 has the equal error rate.
        balance = fpr + tpr - 1
        after = int(np.argmax(balance >= 0))
        before = after - 1
        share = -balance[before] / (balance[after] - balance[before])
        return {
            "roc_auc": float(np.trapezoid(tpr, fpr)),
            "average_precision": float(np.diff(tpr) @ precision),
            "eer": float(fpr[before] + share * (fpr[after] - fpr[before])),
            **{name: float(tpr[fpr <= limit + 1e-12].max()) for name, limit in OPERATING_POINTS.items()},
        }
