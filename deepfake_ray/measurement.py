"""Predictions with labels -> metrics.json and metrics.parquet. Knows neither Ray nor torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepfake_ray import bundle, calibration, intervals, metrics, schema, slices
from deepfake_ray.ranking import Ranking
from deepfake_ray.scores import Threshold, called_fake

ONE_SIDED = 0.98
"""Warn when more than this share of the verdicts is the same, while the labels are not."""
COLUMNS = ["logit", "p_fake", "true_label", "group", *slices.COLUMNS]
"""Of the predictions, what is measured."""


def arrays(scored: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels and logits of rows that were scored."""
    fake = pc.equal(scored["true_label"], schema.CLASSES[schema.FAKE]).to_numpy(zero_copy_only=False)
    labels = np.where(fake, schema.FAKE, schema.REAL)
    return labels, scored["logit"].to_numpy().astype(np.float32)


def measure(scored: pa.Table, model: bundle.Spec, threshold: str, seed: int = 0) -> dict[str, Any]:
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
    groups = scored["group"].to_pylist()
    grouped = None not in groups and len(set(groups)) < len(groups)
    result: dict[str, Any] = {
        "model_id": model.model_id,
        "arch": model.arch,
        "verdict_threshold": verdict,
        "num_scored": len(labels),
        "num_real": int(np.sum(labels == schema.REAL)),
        "num_fake": int(np.sum(labels == schema.FAKE)),
        "intervals_by": "group" if grouped else "image",
        **metrics.threshold_free(labels, logits, model.temperature),
        "intervals": {},
        "thresholds": {
            name: {
                "threshold": at.p_fake,
                "threshold_logit": at.logit,
                "num_real": at.num_real,
                "num_fake": at.num_fake,
                **metrics.at_threshold(labels, logits, at),
                "intervals": {},
            }
            for name, at in thresholds.items()
        },
    }
    result["log_loss_uncalibrated"] = calibration.log_loss(labels, logits, 1.0)
    resampled = _resampled(labels, logits, model.temperature, thresholds, groups if grouped else None, seed)
    for (where, name), interval in resampled.items():
        (result["thresholds"][where] if where else result)["intervals"][name] = interval
    if not grouped:
        for at in result["thresholds"].values():
            at["intervals"] |= _of_proportions(at["confusion_matrix"])
    result["slices"] = slices.by_slice(scored, labels, logits, thresholds[verdict])
    result["warnings"] = _warnings(labels, called_fake(logits, thresholds[verdict]))
    return result


def _resampled(
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    temperature: float,
    thresholds: Mapping[str, Threshold],
    groups: list[Any] | None,
    seed: int,
) -> dict[tuple[str, str], intervals.Interval | None]:
    """Bootstrap intervals by (name of the threshold, or nothing; metric)."""
    ranking = Ranking(labels, logits, temperature)
    # Which cell of the confusion matrix an image is in: 2 * true class + verdict.
    cells = {name: 2 * labels + called_fake(logits, at) for name, at in thresholds.items()}

    def figures(weights: NDArray[np.float64]) -> dict[tuple[str, str], float]:
        found = {("", name): value for name, value in ranking.figures(weights).items()}
        for where, cell in cells.items():
            of = metrics.of_counts(np.bincount(cell, weights=weights, minlength=4))
            found |= {(where, name): value for name, value in of.items()}
        return found

    return intervals.bootstrap(figures, len(labels), groups, seed)


def _of_proportions(confusion_matrix: list[list[int]]) -> dict[str, intervals.Interval | None]:
    """Wilson's intervals, of those metrics that are a share of images which were drawn one by one."""
    (tn, fp), (fn, tp) = confusion_matrix
    return {
        "accuracy": intervals.wilson(tn + tp, tn + fp + fn + tp),
        "specificity": intervals.wilson(tn, tn + fp),
        "recall_real": intervals.wilson(tn, tn + fp),
        "recall_fake": intervals.wilson(tp, fn + tp),
        "precision_real": intervals.wilson(tn, tn + fn),
        "precision_fake": intervals.wilson(tp, fp + tp),
    }


def _warnings(labels: NDArray[np.int64], called: NDArray[np.bool_]) -> list[str]:
    share = float(called.mean())
    share_of_labels = float(np.mean(labels == schema.FAKE))
    if max(share, 1 - share) > ONE_SIDED and max(share_of_labels, 1 - share_of_labels) <= ONE_SIDED:
        side = schema.CLASSES[schema.FAKE if share > 0.5 else schema.REAL]
        return [
            f"{max(share, 1 - share):.1%} of the images are called {side}: the model or its threshold does not fit "
            "these images."
        ]
    return []


def tidy(result: Mapping[str, Any]) -> pa.Table:
    """metrics.json's numbers as rows of `schema.METRICS`."""

    def row(metric: str, value: float | None, interval: intervals.Interval | None, **more: Any) -> dict[str, Any]:
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
