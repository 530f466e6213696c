"""What `--resume` finds in an output: whether it is of what is asked now, and whether anything is left to do."""

from collections.abc import Mapping
from typing import Any

from deepfake_ray.config import FREE_TO_CHANGE, JobConfig, QuantizeConfig, ScoreConfig, ScoringOptions, require_same_run
from deepfake_ray.console import say
from deepfake_ray.errors import OF_THE_STORAGE, UserError
from deepfake_ray.models import bundle
from deepfake_ray.models.spec import Spec
from deepfake_ray.scoring.error_limit import describe_errors
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.output_lock import hold_output

RUN, CONFIG, DEGRADED = "run.json", "config.json", "degraded"
_OF_EACH_SOURCE = frozenset({"data", "labels", "group_regex", "split_by", "limit"})
ASKED = "asked"
"""In config.json: the settings as they were asked, before the machine and the data chose the defaults."""


# --- scores


def scores_are_done(config: ScoringOptions, output: str) -> bool:
    """Whether an output of scores is finished, with nothing left to try again; says so.

    Raises:
        UserError: it is of something else than what is asked.
    """
    if not (config.resume and outputs.is_finished(output)):
        return False
    if not files.exists(files.join(output, RUN)):
        raise UserError(
            f"--resume goes on with the same run: {output} is finished and has no {RUN}, so it is of another job; name "
            "another output."
        )
    run = files.read_json(files.join(output, RUN))
    require_same_scores(config, run)
    if run.get("status") != "finished":  # a run that was held up, and lost the output meanwhile, wrote it last
        return False
    predictions = files.join(output, "predictions")
    if isinstance(config, ScoreConfig) and not files.list_names(predictions):
        say(f"{output} is finished, but {predictions} is gone: once more")
        return False
    missing = _not_given(run)
    degraded = files.join(output, DEGRADED, RUN)
    if files.exists(degraded):
        missing |= _not_given(files.read_json(degraded))
    if missing:
        which = describe_errors(missing)
        say(f"{output} is finished, but for images that the storage failed to give ({which}): once more")
        return False
    when = f" on {run['finished_at']}" if "finished_at" in run else ""
    _say_finished(
        output,
        f"{run['num_images']:,} images were scored{when} by model {run['model_id']}",
        f"; images that came since are not in it: score them into a new output with --skip-known {output}"
        if isinstance(config, ScoreConfig)
        else "",
    )
    return True


def _not_given(run: Mapping[str, Any]) -> dict[str, int]:
    if "predictions_of" in run:  # scores of another output, which is resumed for itself
        return {}
    return {code: number for code, number in run["errors_by_code"].items() if code in OF_THE_STORAGE}


def require_same_scores(config: ScoringOptions, run: Mapping[str, Any]) -> None:
    """Compare a run of scores with what is asked now.

    Args:
        config: as asked now.
        run: its run.json.

    Raises:
        UserError: names the first setting that differs, or the models.
    """
    model = bundle.load_spec(config.model) if config.model else None
    # The place may be another: that of a copy.
    if model is not None and not model.made(run["model_id"]):
        raise UserError(
            f"--resume goes on with the same run: model was {run['config'].get('model')} ({run['model_id']}) and "
            f"is now {config.model} ({model.model_id}); set it back, or write to a new output."
        )
    if "predictions_of" not in run:
        free = FREE_TO_CHANGE | {"model"}
        if config.precision in ("auto", run.get("precision")):  # what auto comes to is compared where it is known
            free |= {"precision"}
        _require_same(config, run["config"], config.to_json(), free)
    elif "evaluation" in run:
        _require_same(config, run["evaluation"], config.to_json(), FREE_TO_CHANGE | {"model"})
    else:  # of a version that kept no more of it
        require_same_run({"predictions": run["predictions_of"]}, {"predictions": getattr(config, "predictions", None)})
    if model is not None:
        asked_logit = model.threshold(config.threshold).logit
        if asked_logit != run.get("threshold_logit", asked_logit):
            raise UserError(
                f"--resume goes on with the same run: the model's threshold {config.threshold} was at a logit of "
                f"{run['threshold_logit']:g} and is now at {asked_logit:g}; give the model as it was, or write to a "
                "new output."
            )


def _require_same(config: JobConfig, before: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str]) -> None:
    """As `require_same_run`, where `before` may be of a version that did not know all settings."""
    completed = config.completed(before)
    require_same_run({name: completed[name] for name in completed if name in before or name in now}, now, free)


# --- other jobs

OF_TRAINING = FREE_TO_CHANGE - {"num_workers"}
"""What a training may be told otherwise: its order of rows and batch-norm statistics depend on the workers."""


def is_done(config: JobConfig, output: str, what: str) -> bool:
    """Whether an output with config.json is finished; says so.

    Args:
        config: as asked now.
        output: of the job.
        what: it holds then.

    Raises:
        UserError: it is of something else than what is asked.
    """
    if not (config.resume and outputs.is_finished(output)):
        return False
    settings, of_first = files.join(output, CONFIG), files.join(output, "all", CONFIG)
    if files.exists(settings):
        require_same_request(config, files.read_json(settings))
    elif files.exists(of_first):  # of leave-one-source-out in a version that kept none for the whole
        before = files.read_json(of_first)
        require_same_request(config, {name: before[name] for name in before if name not in _OF_EACH_SOURCE})
    _say_finished(output, what)
    return True


def require_same_request(config: JobConfig, before: Mapping[str, Any]) -> None:
    """Compare config.json with what is asked now.

    Raises:
        UserError: names the first setting that differs.
    """
    now = config.to_json()
    if ASKED in before:
        _require_same(config, before[ASKED], now, OF_TRAINING)
        return
    # Of a version that kept what was chosen alone: what is left to the machine now may have been so then.
    now = {name: value for name, value in now.items() if name in before and value not in (None, "auto")}
    require_same_run({name: before[name] for name in now}, now, OF_TRAINING)


def require_same_settings(config: JobConfig, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare config.json of an unfinished training with the settings that are chosen now.

    Raises:
        UserError: names the first setting that differs.
    """
    _require_same(config, {name: before[name] for name in before if name != ASKED}, now, OF_TRAINING)


def asked_settings(config: JobConfig) -> dict[str, Any]:
    """What `require_same_request` is to find in config.json."""
    return {ASKED: {name: value for name, value in config.to_json().items() if name != "mlflow_uri"}}  # a password?


def require_quantised_of(config: QuantizeConfig, output: str, quantised: Spec) -> None:
    """Make sure that a finished output is the bundle that is asked for; says so.

    Raises:
        UserError: it was made of another, or of other data.
    """
    made_of = quantised.provenance.get("quantised_from")
    model = bundle.load_spec(config.model)
    if made_of is None or not model.made(made_of):
        raise UserError(
            f"--resume goes on with the same run: {output} was made of model {made_of}, and {config.model} is "
            f"{model.model_id}; set it back, or write to a new output."
        )
    before = quantised.provenance.get(ASKED)
    if before is not None:
        _require_same(config, before, config.to_json(), FREE_TO_CHANGE | {"model"})
    _say_finished(output, f"model {quantised.model_id} in integers")


def _say_finished(output: str, what: str, advice: str = "") -> None:
    say(f"{output} is finished already: {what}; nothing to do{advice}")
    if files.exists(files.join(output, outputs.LOCK)):
        with hold_output(output):  # of a run that was killed at its very end: it goes with this one
            pass
