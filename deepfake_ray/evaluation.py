"""`evaluate(config)`: score a labelled split, then metrics, a classification report, figures and report.html."""

import shlex
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepfake_ray import bundle, manifest, metrics, report, schema, storage
from deepfake_ray.config import EvaluateConfig
from deepfake_ray.labels import of_split, read_labelled
from deepfake_ray.progress import say
from deepfake_ray.scoring import RUN, read_predictions, score_manifest

ONE_SIDED = 0.98
"""Warn when more than this share of the verdicts is the same, while the labels are not."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as configured and write OUTPUT; returns `metrics.json`.

    Raises:
        UserError: see the messages.
        JobError: no image could be scored.
    """
    output = storage.absolute(config.output)
    if config.resume and storage.is_finished(output):
        say(f"{output} is finished already; nothing to do")
        finished: dict[str, Any] = storage.read_json(storage.join(output, "metrics.json"))
        return finished

    def pages() -> list[manifest.Page]:
        images = read_labelled(
            config.data,
            labels=config.labels,
            group_regex=config.group_regex,
            split_by=config.split_by,
            limit=config.limit,
            seed=config.seed,
        )
        chosen = of_split(images, config.split, config.data)
        return [manifest.Page(chosen.table, chosen.other_files)]

    run = score_manifest(config, [config.data], pages)
    columns = ["row", "status", "logit", "p_fake", "true_label", "source"]
    rows = read_predictions(output, columns)
    scored = rows.filter(pc.equal(rows["status"], schema.OK))
    model = bundle.load_spec(config.model)
    result = measure(scored, model, config.threshold)
    result |= {
        "split": config.split,
        "data": storage.absolute(config.data),
        "model": storage.absolute(config.model),
        "num_errors": run["num_errors"],
        "command": shlex.join(["python", *sys.argv]),
    }
    labels, logits, p_fake = _arrays(scored)
    at = result["thresholds"][result["verdict_threshold"]]["threshold"]
    report_text = metrics.classification_report(labels, p_fake, at)
    pictures = report.figures(labels, logits, p_fake, result)
    storage.write_json(storage.join(output, "metrics.json"), result)
    with storage.new_file(storage.join(output, "metrics.parquet")) as path:
        pq.write_table(tidy(result), path, compression="zstd")
    storage.write_bytes(storage.join(output, "classification_report.txt"), report_text.encode())
    for name, data in pictures.items():
        storage.write_bytes(storage.join(output, "figures", f"{name}.png"), data)
    page = report.html(result, pictures, report_text, run)
    storage.write_bytes(storage.join(output, "report.html"), page.encode())
    storage.mark_finished(output)
    _say_result(result, output)
    return result


def _arrays(scored: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Labels, logits and p_fake of the scored rows."""
    fake = pc.equal(scored["true_label"], schema.CLASSES[schema.FAKE]).to_numpy(zero_copy_only=False)
    labels = np.where(fake, schema.FAKE, schema.REAL)
    return (
        labels,
        scored["logit"].to_numpy().astype(np.float64),
        scored["p_fake"].to_numpy().astype(np.float64),
    )


def measure(scored: pa.Table, model: bundle.Spec, threshold: str) -> dict[str, Any]:
    """Everything in metrics.json that comes from the scores.

    Args:
        scored: rows of predictions with status ok, all with a true label.
        model: the bundle's, for its temperature and thresholds.
        threshold: the one that the verdicts are given at: a name, or a number.
    """
    labels, logits, p_fake = _arrays(scored)
    thresholds = dict(model.thresholds)
    if threshold not in thresholds:
        thresholds["given"] = float(threshold)
    verdict = threshold if threshold in thresholds else "given"
    result: dict[str, Any] = {
        "model_id": model.model_id,
        "arch": model.arch,
        "verdict_threshold": verdict,
        "num_scored": len(labels),
        "num_real": int(np.sum(labels == schema.REAL)),
        "num_fake": int(np.sum(labels == schema.FAKE)),
        **metrics.threshold_free(labels, logits, model.temperature),
        "thresholds": {
            name: {"threshold": value, **metrics.at_threshold(labels, p_fake, value)}
            for name, value in thresholds.items()
        },
    }
    result["sources"] = _by_source(scored, labels, p_fake, thresholds[verdict])
    result["warnings"] = _warnings(labels, p_fake >= thresholds[verdict])
    return result


def _by_source(
    scored: pa.Table, labels: NDArray[np.int64], p_fake: NDArray[np.float64], threshold: float
) -> dict[str, dict[str, Any]]:
    sources = np.array(scored["source"].to_pylist(), dtype=object)
    found = {}
    for source in sorted({source for source in sources if source is not None}):
        of = sources == source
        real = p_fake[of & (labels == schema.REAL)]
        fake = p_fake[of & (labels == schema.FAKE)]
        found[source] = {
            "num_real": len(real),
            "num_fake": len(fake),
            "recall_real": float(np.mean(real < threshold)) if len(real) else None,
            "recall_fake": float(np.mean(fake >= threshold)) if len(fake) else None,
        }
    return found


def _warnings(labels: NDArray[np.int64], called_fake: NDArray[np.bool_]) -> list[str]:
    share = float(called_fake.mean())
    share_of_labels = float(np.mean(labels == schema.FAKE))
    if max(share, 1 - share) > ONE_SIDED and max(share_of_labels, 1 - share_of_labels) <= ONE_SIDED:
        side = schema.CLASSES[schema.FAKE if share > 0.5 else schema.REAL]
        return [
            f"{max(share, 1 - share):.1%} of the images are called {side}: the model or its threshold does not fit "
            "these images."
        ]
    return []


def tidy(result: dict[str, Any]) -> pa.Table:
    """metrics.json's numbers as rows of `schema.METRICS`."""

    def row(metric: str, value: float | None, **more: Any) -> dict[str, Any]:
        common = {
            "metric": metric,
            "split": result["split"],
            "value": value,
            "num_images": result["num_scored"],
        }
        return {**common, **more}

    rows = [row(name, result[name]) for name in ("roc_auc", "average_precision", "log_loss")]
    for name, at in result["thresholds"].items():
        where = {"threshold_name": name, "threshold": at["threshold"]}
        rows += [
            row(metric, value, **where)
            for metric, value in at.items()
            if metric not in ("threshold", "confusion_matrix")
        ]
        (tn, fp), (fn, tp) = at["confusion_matrix"]
        counts = {"true_real": tn, "false_fake": fp, "false_real": fn, "true_fake": tp}
        rows += [row(metric, float(value), **where) for metric, value in counts.items()]
    verdict = result["verdict_threshold"]
    where = {"threshold_name": verdict, "threshold": result["thresholds"][verdict]["threshold"]}
    for source, of in result["sources"].items():
        for label in schema.CLASSES:
            if of[f"num_{label}"]:
                more = {**where, "source": source, "num_images": of[f"num_{label}"]}
                rows.append(row(f"recall_{label}", of[f"recall_{label}"], **more))
    return pa.Table.from_pylist(rows, schema=schema.METRICS)


def _say_result(result: dict[str, Any], output: str) -> None:
    at = result["thresholds"][result["verdict_threshold"]]
    auc = "" if result["roc_auc"] is None else f", ROC AUC {result['roc_auc']:.4f}"
    say(
        f"{result['split']}: accuracy {at['accuracy']:.4f}, balanced accuracy {at['balanced_accuracy']:.4f}, F1 of "
        f"fake {at['f1_fake']:.4f} at {result['verdict_threshold']} ({at['threshold']:.4f}){auc}, on "
        f"{result['num_scored']:,} images"
    )
    for warning in result["warnings"]:
        say(f"warning: {warning}")
    names = ("report.html", "metrics.json", "classification_report.txt", "figures", "predictions", RUN)
    say("\n".join(f"  {name:26}{storage.join(output, name)}" for name in names))
