"""What Python users import from `deepfake_ray`: `Detector`, and `train`, `score`, `evaluate`, the jobs as functions."""

from typing import Any

from deepfake_ray.config import EvaluateConfig, ScoreConfig, TrainConfig
from deepfake_ray.scoring.detector import Detector as Detector


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
    return _run(TrainConfig(**settings), "leave_one_source_out", "train_or_cross")


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
    if isinstance(settings.get("images"), str):
        settings["images"] = (settings["images"],)
    return _run(ScoreConfig(**settings), "score", "score")


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
    return _run(EvaluateConfig(**settings), "evaluate", "evaluate")


def _run(config: Any, module: str, function: str) -> dict[str, Any]:
    from importlib import import_module

    from deepfake_ray.drivers import checks

    checks.check(config)
    checks.check_network(config)
    job = getattr(import_module(f"deepfake_ray.drivers.{module}"), function)  # loads Ray
    from deepfake_ray.cluster.session import ray_session

    with ray_session(verbose=config.verbose):
        result: dict[str, Any] = job(config)
        return result
