"""Two models on the same images: who is right where the other is wrong. Knows neither Ray nor torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from deepfake_ray import schema
from deepfake_ray.evaluation import intervals, metrics
from deepfake_ray.evaluation.intervals import Clusters
from deepfake_ray.evaluation.ranking import Ranking
from deepfake_ray.models.scores import Threshold, is_predicted_fake

COLUMNS = ["uri", "logit", "true_label", "group"]


def compare(
    ours: pd.DataFrame, theirs: pd.DataFrame, thresholds: tuple[Threshold, Threshold], seed: int = 0
) -> dict[str, Any]:
    """Figures of two models on the images that both have scored, and how sure the differences are.

    Args:
        ours: `COLUMNS` of predictions with status ok.
        theirs: likewise, of the other model.
        thresholds: ours, theirs.
        seed: of the resamples.

    Returns:
        num_images; `ours` and `theirs` (roc_auc, accuracy, balanced_accuracy, recall_real, recall_fake); `difference`,
        ours minus theirs of each of these, and its 95 % interval over paired resamples of the images, or of whole
        groups (`intervals_by`; those of our predictions), None where all resamples have the same; only_ours_right and
        only_theirs_right (images); mcnemar_p, the exact two-sided p-value of the hypothesis that both err equally often
        (McNemar 1947), which by group tosses who is better in each whole group (`intervals.sign_test`).

    Raises:
        ValueError: they have no image in common, not of both classes, or do not agree on a label.
    """
    both = ours.merge(theirs[["uri", "logit", "true_label"]], on="uri", suffixes=("", "_other"))
    if not len(both):
        raise ValueError("no image is in both")
    disagree = both[both.true_label != both.true_label_other]
    if len(disagree):
        raise ValueError(f"{len(disagree)} images have another label there, such as {disagree.uri.iloc[0]}")
    if both.true_label.nunique() < 2:
        raise ValueError("the images that are in both are of one class")
    labels = np.where(both.true_label == schema.CLASSES[schema.FAKE], schema.FAKE, schema.REAL)
    models = [
        _Model(labels, both.logit, thresholds[0]),
        _Model(labels, both.logit_other, thresholds[1]),
    ]

    def differences(weights: np.ndarray) -> Mapping[str, float]:
        first, second = (model.figures(weights) for model in models)
        return {name: first[name] - second[name] for name in first}

    clusters = Clusters.of(both.group)
    spread = intervals.bootstrap(differences, labels, clusters, [both.logit, both.logit_other], seed)
    plain = differences(np.ones(len(both)))
    right = [(model.called == labels).astype(np.int64) for model in models]
    only_one = right[0] - right[1]
    return {
        "num_images": len(both),
        "intervals_by": clusters.by,
        "ours": models[0].figures(),
        "theirs": models[1].figures(),
        "difference": {
            name: {"value": value, "interval": intervals.unless_certain(spread[name])} for name, value in plain.items()
        },
        "only_ours_right": int(np.sum(only_one > 0)),
        "only_theirs_right": int(np.sum(only_one < 0)),
        "mcnemar_p": intervals.sign_test(only_one, clusters),
    }


class _Model:
    def __init__(self, labels: np.ndarray, logits: pd.Series, threshold: Threshold):
        self.called = is_predicted_fake(logits, threshold)
        self._cells = 2 * labels + self.called
        self._ranking = Ranking(labels, logits, 1.0)

    def figures(self, weights: np.ndarray | None = None) -> dict[str, float]:
        of = metrics.figures_from_counts(np.bincount(self._cells, weights=weights, minlength=4))
        names = ("accuracy", "balanced_accuracy", "recall_real", "recall_fake")
        return {"roc_auc": self._ranking.figures(weights)["roc_auc"]} | {name: float(of[name]) for name in names}
