"""`evaluate(config)`: score a labelled split, then metrics, a classification report, figures and report.html."""

import shlex
import sys
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepfake_ray import bundle, manifest, measurement, metrics, report, schema, storage
from deepfake_ray.config import EvaluateConfig
from deepfake_ray.labels import of_split, read_labelled
from deepfake_ray.progress import say
from deepfake_ray.scoring import RUN, read_predictions, score_manifest


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
    rows = read_predictions(output, ["row", "status", *measurement.COLUMNS])
    scored = rows.filter(pc.equal(rows["status"], schema.OK))
    model = bundle.load_spec(config.model)
    result = measurement.measure(scored, model, config.threshold, config.seed)
    result |= {
        "split": config.split,
        "data": storage.absolute(config.data),
        "model": storage.absolute(config.model),
        "num_errors": run["num_errors"],
        "command": shlex.join(["python", *sys.argv]),
    }
    labels, logits, p_fake = measurement.arrays(scored)
    at = result["thresholds"][result["verdict_threshold"]]["threshold"]
    report_text = metrics.classification_report(labels, p_fake, at)
    pictures = report.figures(labels, logits, p_fake, result, model.temperature)
    storage.write_json(storage.join(output, "metrics.json"), result)
    with storage.new_file(storage.join(output, "metrics.parquet")) as path:
        pq.write_table(measurement.tidy(result), path, compression="zstd")
    storage.write_bytes(storage.join(output, "classification_report.txt"), report_text.encode())
    for name, data in pictures.items():
        storage.write_bytes(storage.join(output, "figures", f"{name}.png"), data)
    page = report.html(result, pictures, report_text, run)
    storage.write_bytes(storage.join(output, "report.html"), page.encode())
    storage.mark_finished(output)
    _say_result(result, output)
    return result


def _say_result(result: dict[str, Any], output: str) -> None:
    at = result["thresholds"][result["verdict_threshold"]]
    auc = ""
    if result["roc_auc"] is not None:
        low, high = result["intervals"]["roc_auc"]
        auc = f", ROC AUC {result['roc_auc']:.4f} ({low:.4f} to {high:.4f})"
    say(
        f"{result['split']}: accuracy {at['accuracy']:.4f}, balanced accuracy {at['balanced_accuracy']:.4f}, F1 of "
        f"fake {at['f1_fake']:.4f} at {result['verdict_threshold']} ({at['threshold']:.4f}){auc}, on "
        f"{result['num_scored']:,} images"
    )
    for warning in result["warnings"]:
        say(f"warning: {warning}")
    names = ("report.html", "metrics.json", "classification_report.txt", "figures", "predictions", RUN)
    say("\n".join(f"  {name:26}{storage.join(output, name)}" for name in names))
