"""`evaluate(config)`: labelled scores -> metrics, a classification report, figures and report.html. The driver."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from deepfake_ray import interrupts, schema
from deepfake_ray.cluster.session import cause_of, start_ray
from deepfake_ray.config import EvaluateConfig
from deepfake_ray.console import say, show
from deepfake_ray.data import audit, leakage, manifest, tables
from deepfake_ray.data.held_out import select_held_out
from deepfake_ray.data.labels import draw, load_labelled, select_split
from deepfake_ray.data.predictions import read_predictions
from deepfake_ray.drivers.file_facts import image_facts
from deepfake_ray.drivers.resuming import DEGRADED, RUN, require_same_scores, scores_are_done
from deepfake_ray.drivers.score import score_manifest
from deepfake_ray.errors import JobError, UserError
from deepfake_ray.evaluation import comparison, error_gallery, figures, label_join, metrics, report, robustness, summary
from deepfake_ray.evaluation.wording import result_text
from deepfake_ray.images.corruptions import DEGRADATIONS
from deepfake_ray.images.decode import Limits
from deepfake_ray.models import bundle, card
from deepfake_ray.models.scores import Threshold, require_same_precision, threshold_of_rows
from deepfake_ray.models.spec import Spec
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.errors import first_line
from deepfake_ray.storage.output_lock import OutputLock, hold_output

METRICS = "metrics.json"
COLUMNS = ["row", "uri", "sha256", "num_bytes", "status", *summary.COLUMNS]
"""Of the predictions, what is looked at."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as configured and write OUTPUT; returns `metrics.json`.

    Raises:
        UserError: see the messages.
        JobError: no image could be scored.
    """
    output = files.absolute(config.output)
    if scores_are_done(config, output):
        finished: dict[str, Any] = files.read_json(files.join(output, METRICS))
        return finished
    with hold_output(output) as lock:
        return _evaluate(config, output, lock)


def _evaluate(config: EvaluateConfig, output: str, lock: OutputLock) -> dict[str, Any]:
    if config.resume and files.exists(files.join(output, RUN)):
        require_same_scores(config, files.read_json(files.join(output, RUN)))
    other = None if config.compare is None else _other_evaluation(config.compare)
    if config.predictions is None:
        # Before Ray is started; a resumed run scores the images that it began with.
        pages = [] if config.resume and files.exists(files.join(output, RUN)) else _labelled_pages(config)
        run = score_manifest(config, [config.data], lambda: pages, lock)
    else:
        config, run = _join(config, output)
        start_ray()
    rows = read_predictions(output, COLUMNS)
    scored = _scored(rows, config.predictions or output)
    model = bundle.load_spec(config.model)
    threshold = model.threshold(config.threshold)
    limits = Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
    result = summary.measure(scored, model, config.threshold, config.seed)
    result |= {
        "split": config.split or _split_of(rows, config),
        "data": files.absolute(config.data or config.labels or ""),
        "model": files.absolute(config.model),
        "model_id": run["model_id"],  # in the precision of the run, which may be another than the bundle's own
        "num_errors": run["num_errors"],
        "command": command_line(),
    }
    result["warnings"] += run.get("warnings_of_joining", [])
    result["audit"] = _audit(scored, config, limits)
    result["warnings"] += result["audit"].pop("warnings")
    if config.degrade:
        result["degradations"] = _degraded(scored, _as_scored(run, config), output, threshold, lock)
    if other is not None:
        result["comparison"] = _comparison(scored, threshold, other, config)
    errors = _mistakes(scored, threshold, config.model, limits)
    _write(result, scored, model, threshold, errors, run, output)
    try:
        if not bundle.add_evaluation(config.model, result):
            say(f"the bundle's {card.CARD} was written by others and stays; see its {bundle.EVALUATIONS}/")
    except (OSError, UserError) as error:
        say(f"the bundle's {card.CARD} could not be brought up to date: {first_line(error)}")
    lock.mark_finished()
    _say_result(result, output)
    return result


# --- what is evaluated


def _labelled_pages(config: EvaluateConfig) -> list[manifest.Page]:
    images = load_labelled(replace(config, limit=None))
    if images.splits_made and config.split is None:
        trained = leakage.load(config.model)
        limits = Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
        provenance = bundle.load_spec(config.model).provenance
        images, line = select_held_out(images, trained, provenance, lambda uris: image_facts(uris, limits)["sha256"])
        say(line)
    else:
        images = select_split(images, config.split or schema.TEST, config.data)
    if config.limit is not None:
        images = draw(images, config.limit, config.seed, whole=images.splits_made)
        say(f"--limit: {len(images.table):,} of them, drawn at random")
    return [manifest.Page(images.table, images.other_files, images.num_repeated_uris)]


def _split_of(rows: pa.Table, config: EvaluateConfig) -> str:
    """What was evaluated, where nobody said: a place without split folders may have been evaluated whole."""
    is_whole = config.predictions is not None or rows["split"].null_count == len(rows)
    return "all" if is_whole else schema.TEST


def _join(config: EvaluateConfig, output: str) -> tuple[EvaluateConfig, dict[str, Any]]:
    """Labelled predictions instead of scoring; returns the configuration with its model, and `run.json`."""
    place = config.predictions or ""
    asked = config.to_json()
    run = label_join.scoring_run(place)
    config = replace(config, model=config.model or run["config"]["model"])
    model = bundle.load_spec(config.model)
    if not model.made(run["model_id"]):
        raise UserError(
            f"model must be the one that made the predictions: {config.model} is {model.model_id}, they are by "
            f"{run['model_id']}; give --model."
        )
    if config.degrade and config.precision != schema.AUTO:
        where = f"degraded images are scored as the predictions were: {place}"
        require_same_precision(where, run.get("precision"), config.precision)
    if not config.resume:
        outputs.require_new_output(output, resumable=True)
    if config.data:
        labels = select_split(load_labelled(config), config.split or "all", config.data).table
    else:
        labels = manifest.list_images(config.labels or "", shared_storage=config.shared_storage).table
        labels = labels.filter(labels["label"].is_valid())
        if config.split not in (None, "all"):
            labels = labels.filter(pc.equal(labels["split"], config.split))
    if config.resume:
        outputs.mark_unfinished(output)
    counts = label_join.join(place, labels, output)
    if counts["num_errors"] == counts["num_images"]:
        raise JobError(f"none of the {counts['num_images']:,} labelled images could be scored: see {place}")
    run |= {
        "num_errors": counts["num_errors"],
        "num_images": counts["num_images"],
        "predictions_of": place,
        "evaluation": asked,
    }
    run["warnings_of_joining"] = (
        [f"{counts['num_without_prediction']:,} labelled images have no prediction and are in no figure."]
        if counts["num_without_prediction"]
        else []
    )
    files.write_json(files.join(output, RUN), run)
    return config, run


def _other_evaluation(place: str) -> tuple[dict[str, Any], pa.Table]:
    """metrics.json and the scored rows of another evaluation."""
    place = files.absolute(place)
    try:
        result: dict[str, Any] = files.read_json(files.join(place, METRICS))
        rows = read_predictions(place, ["status", "p_fake", *comparison.COLUMNS])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"compare must be the output of jobs/evaluate.py: {place} is not ({error}).") from error
    return result, _scored(rows, place)


def _scored(rows: pa.Table, place: str) -> pa.Table:
    """The rows that have a score, which earlier versions wrote of broken models, too."""
    scored = rows.filter(pc.equal(rows["status"], schema.OK))
    broken = scored.filter(pc.invert(pc.is_finite(scored["logit"])))
    if len(broken):
        raise UserError(
            f"scores must be finite: {len(broken):,} of {place} are not, such as that of {broken['uri'][0]}; their "
            "model is broken: train again, and score anew."
        )
    return scored


# --- what is looked at besides the scores


def _audit(scored: pa.Table, config: EvaluateConfig, limits: Limits) -> dict[str, Any]:
    trained = leakage.load(config.model)
    facts = None
    if trained is not None:
        facts = image_facts(scored["uri"], limits)
    return audit.audit_evaluation(scored, trained, facts, config.seed)


def _as_scored(run: Mapping[str, Any], config: EvaluateConfig) -> EvaluateConfig:
    """To score more images so that their logits may stand beside those of a run."""
    computed_in = run.get("precision")
    if computed_in is None:
        say("warning: the precision of the scores was not noted: those after degradations may be in another")
    config = replace(config, crops=run["config"].get("crops", 1))
    return replace(config, precision=computed_in) if computed_in in (schema.BF16, schema.FP32) else config


def _degraded(
    scored: pa.Table, config: EvaluateConfig, output: str, threshold: Threshold, lock: OutputLock
) -> list[dict[str, Any]]:
    drawn = robustness.draw(scored, config.degrade, config.seed)
    say(f"the same after {len(DEGRADATIONS)} degradations, on {len(drawn):,} images")
    names = tuple(DEGRADATIONS)
    place = files.join(output, DEGRADED)
    columns = {name: drawn[name] for name in ("uri", "split", "source", "group")} | {"label": drawn["true_label"]}
    page = manifest.Page(tables.manifest_rows(columns, len(drawn)))
    _require_the_same_drawn(page, place)
    score_manifest(replace(config, output=place, skip_known=None), [], lambda: [page], lock, names)
    degraded = read_predictions(place)
    degraded = degraded.filter(pc.equal(degraded["status"], schema.OK))
    # The rows there count the drawn images.
    row = drawn["row"].take(degraded["row"])
    degraded = degraded.set_column(degraded.column_names.index("row"), "row", row)
    return robustness.figures_by_degradation(scored, degraded, threshold, config.seed)


def _require_the_same_drawn(page: manifest.Page, place: str) -> None:
    """Remove the degraded scores of an interrupted run if they are not of the images that are drawn now: some that the
    storage gives only now change what is drawn from.
    """
    begun = files.join(place, RUN)
    if files.exists(begun) and files.read_json(begun)["manifest_sha256"] != manifest.manifest_from_pages([page]).sha256:
        files.delete(begun)  # first: without it nothing is taken for whole
        files.delete_directory(place)


def _comparison(
    scored: pa.Table, threshold: Threshold, other: tuple[dict[str, Any], pa.Table], config: EvaluateConfig
) -> dict[str, Any]:
    result, rows = other
    at = result["thresholds"][result["verdict_threshold"]]
    if "threshold_logit" in at:
        theirs = Threshold(logit=at["threshold_logit"], p_fake=at["threshold"])
    else:  # of a version that compared p_fake
        theirs = threshold_of_rows(rows["logit"], rows["p_fake"], at["threshold"])
    ours, others = (table.select(comparison.COLUMNS).to_pandas() for table in (scored, rows))
    try:
        found = comparison.compare(ours, others, (threshold, theirs), config.seed)
    except ValueError as error:
        raise UserError(f"compare must be an evaluation of the same images: {config.compare}: {error}.") from error
    return {"with": files.absolute(config.compare or ""), "model_id": result["model_id"], **found}


def _mistakes(scored: pa.Table, threshold: Threshold, model: str, limits: Limits) -> list[error_gallery.Mistake]:
    """On a worker, because these are pictures to be decoded, and a model to be run."""
    rows = error_gallery.worst(scored, threshold)
    if not rows:
        return []
    try:
        look = ray.remote(num_cpus=1)(error_gallery.pictures)
        found: list[error_gallery.Mistake] = ray.get(look.remote(rows, files.absolute(model), limits))
        return found
    except ray.exceptions.RayError as error:
        say(f"warning: no pictures of the errors: {cause_of(error)}")
        return []


# --- what is written


def _write(
    result: dict[str, Any],
    scored: pa.Table,
    model: Spec,
    threshold: Threshold,
    errors: list[error_gallery.Mistake],
    run: Mapping[str, Any],
    output: str,
) -> None:
    labels, logits = summary.arrays(scored)
    report_text = metrics.classification_report(labels, logits, threshold)
    pictures = figures.draw_evaluation(labels, logits, result, model.temperature)
    files.write_json(files.join(output, METRICS), result)
    with files.new_file(files.join(output, "metrics.parquet")) as path:
        pq.write_table(summary.tidy(result), path, compression="zstd")
    files.write_bytes(files.join(output, "classification_report.txt"), report_text.encode())
    for name, data in pictures.items():
        files.write_bytes(files.join(output, "figures", f"{name}.png"), data)
    page = report.html(result, pictures, errors, report_text, run)
    files.write_bytes(files.join(output, "report.html"), page.encode())


def _say_result(result: dict[str, Any], output: str) -> None:
    show(result_text(result))
    for warning in result["warnings"]:
        say(f"warning: {warning}")
    names = ("report.html", METRICS, "classification_report.txt", "figures", "predictions", RUN)
    show("\n".join(f"  {name:26}{files.join(output, name)}" for name in names))


def command_line() -> str:
    """As the job was asked; nothing of the command line of another program that calls it."""
    if not interrupts.is_job():
        return "deepfake_ray.evaluate()"
    program, *words = sys.argv
    return shlex.join(["python", program, *words]) if program.endswith(".py") else f"{program} {shlex.join(words)}"
