"""Predictions with labels -> metrics.json and metrics.parquet. Knows neither Ray nor torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepfake_ray import schema
from deepfake_ray.evaluation import calibration, intervals, metrics, slices, wording
from deepfake_ray.evaluation.intervals import Clusters, Interval
from deepfake_ray.evaluation.ranking import Ranking
from deepfake_ray.models.scores import Threshold, is_predicted_fake
from deepfake_ray.models.spec import Spec

COLUMNS = ["logit", "p_fake", "true_label", "group", *slices.COLUMNS]
"""Of the predictions, what is measured."""


def arrays(scored: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels and logits of rows that were scored."""
    fake = pc.equal(scored["true_label"], schema.CLASSES[schema.FAKE]).to_numpy(zero_copy_only=False)
    labels = np.where(fake, schema.FAKE, schema.REAL)
    return labels, scored["logit"].to_numpy().astype(np.float32)


def measure(scored: pa.Table, model: Spec, threshold: str, seed: int = 0) -> dict[str, Any]:
    """Everything in metrics.json that comes from the scores.

    Args:
        scored: rows of predictions with status ok, all with a true label, and `COLUMNS`.
        model: the bundle's, for its temperature and thresholds.
        threshold: the one that the verdicts are given at: a name, or a number.
        seed: of the resamples that the intervals are from.
    """
    labels, logits = arrays(scored)
    thresholds = dict(model.thresholds)
    if threshold not in thresholds:
        thresholds["given"] = model.threshold(threshold)
    verdict = threshold if threshold in thresholds else "given"
    clusters = Clusters.of(scored["group"].to_pylist())
    result: dict[str, Any] = {
        "model_id": model.model_id,
        "arch": model.arch,
        "verdict_threshold": verdict,
        "num_scored": len(labels),
        "num_real": int(np.sum(labels == schema.REAL)),
        "num_fake": int(np.sum(labels == schema.FAKE)),
        "intervals_by": clusters.by,
        "num_groups": _num_groups(labels, clusters),
        **metrics.threshold_free(labels, logits, model.temperature),
        "intervals": {},
        "thresholds": {
            name: {
                "threshold": at.p_fake,
                "threshold_logit": at.logit,
                "num_real": at.num_real,
                "num_fake": at.num_fake,
                **_promise(name, at),
                **metrics.figures_at_threshold(labels, logits, at),
                "intervals": {},
            }
            for name, at in thresholds.items()
        },
    }
    result["log_loss_uncalibrated"] = calibration.log_loss(labels, logits, 1.0)
    resampled = _resampled(labels, logits, model.temperature, thresholds, clusters, seed)
    for (where, name), interval in resampled.items():
        of = result["thresholds"][where] if where else result
        of["intervals"][name] = None if of[name] is None else intervals.unless_certain(interval)
    for name, at in thresholds.items():
        of = result["thresholds"][name]
        of["intervals"] |= _of_proportions(labels, is_predicted_fake(logits, at), clusters)
    result["slices"] = slices.figures_by_slice(scored, labels, logits, thresholds[verdict], clusters)
    result["warnings"] = wording.cautions(result)
    return result


def _promise(name: str, at: Threshold) -> dict[str, Any]:
    """`max_fpr`, the share of real images that a threshold is to call fake at most (None: it is for something else);
    `is_promised`, whether it was chosen on real images enough; it is believed where their number is not known.
    """
    few = at.num_real is not None and at.num_real < calibration.MIN_REALS.get(name, 0)
    return {"max_fpr": calibration.MAX_FPR.get(name), "is_promised": name in calibration.MAX_FPR and not few}


def _num_groups(labels: NDArray[np.int64], clusters: Clusters) -> dict[str, int] | None:
    """Groups with an image of each class; one without a group counts as one. None where each image is on its own."""
    if not clusters.by_group:
        return None
    return {name: clusters.count(labels == label) for label, name in enumerate(schema.CLASSES)}


def _resampled(
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    temperature: float,
    thresholds: Mapping[str, Threshold],
    clusters: Clusters,
    seed: int,
) -> dict[tuple[str, str], Interval | None]:
    """Bootstrap intervals by (name of the threshold, or nothing; metric)."""
    ranking = Ranking(labels, logits, temperature)
    # Which cell of the confusion matrix an image is in: 2 * true class + verdict.
    cells = [2 * labels + is_predicted_fake(logits, at) for at in thresholds.values()]

    def figures(weights: NDArray[np.float64]) -> dict[tuple[str, str], float]:
        found = {("", name): value for name, value in ranking.figures(weights).items()}
        counts = np.array([np.bincount(cell, weights, 4) for cell in cells])
        for name, values in metrics.figures_from_counts(counts).items():
            found |= {(where, name): value for where, value in zip(thresholds, values, strict=True)}
        return found

    return intervals.bootstrap(figures, labels, clusters, [logits], seed)


def _of_proportions(
    labels: NDArray[np.int64], fake: NDArray[np.bool_], clusters: Clusters
) -> dict[str, Interval | None]:
    """Of those metrics that are a share of images; None where there is no such image, or none of the class."""
    found = {"accuracy": intervals.proportion((labels == schema.FAKE) == fake, clusters)}
    for label, name in enumerate(schema.CLASSES):
        of_class, called = labels == label, fake == bool(label)
        found[f"recall_{name}"] = intervals.proportion(called, clusters, of_class)
        found[f"precision_{name}"] = intervals.proportion(of_class, clusters, called) if of_class.any() else None
    return {**found, "specificity": found["recall_real"]}


def tidy(result: Mapping[str, Any]) -> pa.Table:
    """metrics.json's numbers as rows of `schema.METRICS`."""

    def row(metric: str, value: float | None, interval: Interval | None, **more: Any) -> dict[str, Any]:
        low, high = interval or (None, None)
        common = {"metric": metric, "split": result["split"], "value": value, "low": low, "high": high}
        return {**common, "num_images": result["num_scored"], **more}

    rows = [row(name, result[name], interval) for name, interval in result["intervals"].items()]
    for name, at in result["thresholds"].items():
        where = {"threshold_name": name, "threshold": at["threshold"]}
        rows += [row(metric, at[metric], interval, **where) for metric, interval in at["intervals"].items()]
        (tn, fp), (fn, tp) = at["confusion_matrix"]
        counts = {"true_real": tn, "false_fake": fp, "false_real": fn, "true_fake": tp}
        rows += [row(metric, float(value), None, **where) for metric, value in counts.items()]
    verdict = result["verdict_threshold"]
    where = {"threshold_name": verdict, "threshold": result["thresholds"][verdict]["threshold"]}
    for of in result["slices"]:
        if of["by"] == "source":
            for label in schema.CLASSES:
                if of[f"num_{label}"]:
                    more = {**where, "source": of["value"], "num_images": of[f"num_{label}"]}
                    rows.append(row(f"recall_{label}", of[f"recall_{label}"], of[f"recall_{label}_interval"], **more))
    return pa.Table.from_pylist(rows, schema=schema.METRICS)
