"""What Python users import from `deepfake_ray`: `Detector`, and `train`, `score`, `evaluate`, the jobs as functions."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pkgutil import resolve_name
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deepfake_ray import config as configurations
from deepfake_ray.errors import UserError
from deepfake_ray.scoring.detector import Detector as Detector
from deepfake_ray.starting import JOBS


def train(**settings: Any) -> dict[str, Any]:
    """Fine-tune a detector, as jobs/train.py does; starts Ray, or joins the cluster at RAY_ADDRESS.

    Args:
        settings: the fields of `config.TrainConfig`, such as `data` and `output`.

    Returns:
        Where the bundle is, its best epoch, figures on the validation split, and thresholds.

    Raises:
        UserError: a mistake in the settings or in what they name.
        JobError: the training failed.
    """
    return _run("train", settings)


def score(**settings: Any) -> dict[str, Any]:
    """Score images into Parquet, as jobs/score.py does; starts Ray, or joins the cluster at RAY_ADDRESS.

    Args:
        settings: the fields of `config.ScoreConfig`, such as `images`, `model` and `output`.

    Returns:
        `run.json`.

    Raises:
        UserError: a mistake in the settings or in what they name.
        JobError: no image could be scored, or too many could not.
    """
    return _run("score", settings)


def evaluate(**settings: Any) -> dict[str, Any]:
    """Score a labelled split and measure, as jobs/evaluate.py does; starts Ray, or joins the cluster at RAY_ADDRESS.

    Args:
        settings: the fields of `config.EvaluateConfig`, such as `data`, `model` and `output`.

    Returns:
        `metrics.json`.

    Raises:
        UserError: a mistake in the settings or in what they name.
        JobError: no image could be scored, or too many could not.
    """
    return _run("evaluate", settings)


def _run(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    from deepfake_ray.drivers import checks

    config_class, function = JOBS[name]
    config = configured(getattr(configurations, config_class), settings)
    checks.check(config)
    checks.check_network(config)
    job = resolve_name(function)  # loads Ray
    from deepfake_ray.cluster.session import ray_session

    with ray_session(verbose=config.verbose):
        result: dict[str, Any] = job(config)
        return result


def configured(config_class: type[Any], settings: Mapping[str, Any]) -> Any:
    """A job's configuration, each value of the kind that its flag takes.

    Paths may be `os.PathLike`, text may be given as a number, and one path instead of several.

    Raises:
        UserError: a setting is unknown, missing, or of another kind; or a value breaks a rule.
    """
    hints = get_type_hints(config_class)
    if unknown := sorted(settings.keys() - hints.keys()):
        raise UserError(f"A setting must be one of {', '.join(sorted(hints))}: got {unknown[0]}; correct its name.")
    required = [field.name for field in fields(config_class) if field.default is MISSING]
    if missing := [name for name in required if name not in settings]:
        raise UserError(f"{missing[0]} must be given: got {', '.join(sorted(settings)) or 'nothing'}; add it.")
    return config_class(**{name: _suited(name, value, hints[name]) for name, value in settings.items()})


def _suited(name: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if get_origin(kinds[0]) is tuple:
        several = [value] if isinstance(value, str) else value
        if isinstance(several, list | tuple):
            return tuple(_suited(name, one, get_args(kinds[0])[0]) for one in several)
    for kind in kinds:
        if get_origin(kind) is Literal:
            if isinstance(value, str) and value in get_args(kind):
                return value
        elif kind is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        elif get_origin(kind) is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    if str in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    wanted = f"one of {', '.join(choices)}" if choices else " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    raise UserError(f"{name} must be {wanted}: got {value!r}; correct it.")
