"""Scores of images as they are and after degradations -> figures. Knows neither Ray nor torch."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from deepfake_ray import schema
from deepfake_ray.evaluation import intervals, metrics
from deepfake_ray.evaluation.intervals import Clusters
from deepfake_ray.evaluation.ranking import Ranking
from deepfake_ray.images.corruptions import DEGRADATIONS
from deepfake_ray.models.scores import Threshold, is_predicted_fake

COLUMNS = ["row", "logit", "true_label", "group"]
AS_IT_IS = "as_it_is"


def draw(scored: pa.Table, number: int, seed: int) -> pa.Table:
    """At most so many rows, as many of each class as there are, in order."""
    random = np.random.default_rng(seed)
    labels = np.array(scored["true_label"].to_pylist())
    chosen = [random.permutation(np.flatnonzero(labels == label)) for label in schema.CLASSES]
    half = max(number // 2, number - min(map(len, chosen)))
    return scored.take(np.sort(np.concatenate([rows[:half] for rows in chosen])))


def figures_by_degradation(
    scored: pa.Table, degraded: pa.Table, threshold: Threshold, seed: int = 0
) -> list[dict[str, Any]]:
    """Figures of the same images as they are, and after each degradation.

    Args:
        scored: rows of predictions with status ok and `COLUMNS`.
        degraded: the same of `schema.DEGRADED`, with `degradation`.
        threshold: of the verdicts.
        seed: of the resamples.

    Returns:
        Of each degradation, those images alone that were scored with it: name, title, num_images, roc_auc, accuracy,
        balanced_accuracy, recall_real, recall_fake, and how many of all verdicts are another than that for the image
        as it is: flipped, flipped_to_fake, flipped_to_real. roc_auc and flipped have intervals, by group where there
        are groups.
    """
    clean = scored.select(COLUMNS).to_pandas().set_index("row")
    after = degraded.select(["row", "degradation", "logit"]).to_pandas().set_index("row")
    of_all = clean[clean.index.isin(after.index)]
    found = [{"name": AS_IT_IS, "title": "as it is", **_figures(of_all, of_all, threshold, seed)}]
    found[0]["flipped_interval"] = None  # it is 0 by what it says, not by what was seen
    for name, degradation in DEGRADATIONS.items():
        rows = after[after.degradation == name]
        rows = rows[rows.index.isin(clean.index)]
        if len(rows):
            before = clean.loc[rows.index]
            now = before.assign(logit=rows.logit)
            found.append({"name": name, "title": degradation.title, **_figures(before, now, threshold, seed)})
    return found


def _figures(before: pd.DataFrame, now: pd.DataFrame, threshold: Threshold, seed: int) -> dict[str, Any]:
    labels = np.where(now.true_label == schema.CLASSES[schema.FAKE], schema.FAKE, schema.REAL)
    at = metrics.figures_at_threshold(labels, now.logit, threshold)
    was, is_now = (is_predicted_fake(frame.logit, threshold) for frame in (before, now))
    ranking = Ranking(labels, now.logit, 1.0)
    clusters = Clusters.of(now.group)
    interval = intervals.bootstrap(
        lambda weights: {"roc_auc": ranking.figures(weights)["roc_auc"]}, labels, clusters, [now.logit], seed
    )
    auc = ranking.figures()["roc_auc"]
    return {
        "num_images": len(now),
        "roc_auc": None if np.isnan(auc) else auc,
        "roc_auc_interval": intervals.unless_certain(interval["roc_auc"]),
        **{name: at[name] for name in ("accuracy", "balanced_accuracy", "recall_real", "recall_fake")},
        "flipped": float(np.mean(was != is_now)),
        "flipped_interval": intervals.proportion(was != is_now, clusters),
        "flipped_to_fake": float(np.mean(is_now > was)),
        "flipped_to_real": float(np.mean(is_now < was)),
    }
