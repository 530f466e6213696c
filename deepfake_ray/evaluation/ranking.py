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
        y, z = (np.asarray(labels) == FAKE).astype(np.float64), np.asarray(logits, np.float64)
        self._order = np.argsort(-z, kind="stable")
        self._fake = y[self._order]
        ranked = z[self._order]
        # A threshold lies between two different scores: images of equal score are called the same.
        self._ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        p_fake = expit(ranked / temperature)
        self._squares = (p_fake - self._fake) ** 2
        self._losses = -log_expit(np.where(self._fake > 0, ranked, -ranked) / temperature)
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
        total = float(w.sum())
        per_bin = np.bincount(self._bins, weights=w * self._gaps, minlength=ECE_BINS)
        return {
            **self._of_the_curve(w),
            "brier": _dot(w, self._squares) / total,
            "log_loss": _dot(w, self._losses) / total,
            "ece": float(np.abs(per_bin).sum() / total),
        }

    def _of_the_curve(self, w: FloatArray) -> dict[str, float]:
        drawn, found = np.cumsum(w), np.cumsum(w * self._fake)
        if len(self._ends) < len(w):
            drawn, found = drawn[self._ends], found[self._ends]
        accused = drawn - found
        fakes, reals = found[-1], accused[-1]
        if not fakes or not reals:
            return dict.fromkeys(("roc_auc", "average_precision", "eer", *OPERATING_POINTS), float("nan"))
        more = np.diff(found, prepend=0.0)
        # fpr - fnr rises from -1 to 1 along the curve; the segment where it crosses 0 has the equal error rate.
        balance = accused / reals + found / fakes - 1
        after = int(np.searchsorted(balance, 0))
        start = (0.0, -1.0) if after == 0 else (accused[after - 1] / reals, balance[after - 1])
        share = -start[1] / (balance[after] - start[1])
        # The last point with so few accused: the curve begins where there are none of either.
        within = {
            name: np.searchsorted(accused, (limit + 1e-12) * reals, "right") for name, limit in OPERATING_POINTS.items()
        }
        return {
            "roc_auc": 1 - _dot(more, accused - np.diff(accused, prepend=0.0) / 2) / float(fakes * reals),
            "average_precision": _dot(more, found / np.maximum(drawn, 1e-300)) / float(fakes),
            "eer": float(start[0] + share * (accused[after] / reals - start[0])),
            **{name: float(found[index - 1] / fakes) if index else 0.0 for name, index in within.items()},
        }


def _dot(one: FloatArray, other: FloatArray) -> float:
    """Of vectors; BLAS would wake its threads for it, which on a busy machine takes longer than the product."""
    return float(np.einsum("i,i->", one, other))
