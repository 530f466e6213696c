"""What is wrong with what a job is asked, as far as it can be known without Ray and torch: in a second or two."""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepfake_ray.config import EvaluateConfig, QuickstartConfig, ScoreConfig, TrainConfig
from deepfake_ray.data import labels, manifest, tables
from deepfake_ray.data.listing import Pick
from deepfake_ray.errors import UserError
from deepfake_ray.evaluation import label_join
from deepfake_ray.models import bundle
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.errors import first_line

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
UNPACKED = "working_dir_files"
"""The folder in which Ray unpacks what `ray job submit --working-dir` sent, and which it deletes."""
GIVEN_BY_NAME = ("imagenet", "none")
"""Initial weights that are no place."""


def check(config: Any) -> None:
    """Look at the places that a configuration names; nothing is written.

    Raises:
        UserError: an input is not there or not what it must be, or the output cannot be written.
    """
    _check_output(config)
    if isinstance(config, QuickstartConfig) or (config.resume and outputs.is_finished(config.output)):
        return
    _require_names(config)
    inputs = _inputs(config)
    with _said_where_it_looked(inputs):
        for place in inputs:
            files.absolute(place)  # refuses schemes
        if getattr(config, "model", ""):
            bundle.require_whole(config.model)  # or each scorer would find out, with Ray up
        _check_outputs_of_others(config)
        _check_tables(config)
    _check_extras(config)


def check_network(config: Any) -> None:
    """Look at --arch and --image-size, which takes torch, but not all else that training loads.

    Raises:
        UserError: there is no such arch, or it does not take images of that size.
    """
    if not isinstance(config, TrainConfig):
        return
    from deepfake_ray.models import networks

    networks.require_known(config.arch)
    if config.image_size is not None:
        networks.check_image_size(config.arch, config.image_size)


def _inputs(config: Any) -> list[str]:
    """The places that a job reads."""
    names = ("data", "labels", "model", "skip_known", "predictions", "compare", "weights")
    named = (getattr(config, name, None) for name in names)
    return [*getattr(config, "images", ()), *(place for place in named if place and place not in GIVEN_BY_NAME)]


def _require_names(config: Any) -> None:
    """An empty place, as of a shell's variable that is not set, would be the current directory."""
    for name in ("data", "images", "labels", "skip_known", "predictions", "compare", "weights"):
        value = getattr(config, name, None)
        if "" in (value if isinstance(value, tuple) else (value,)):
            flag = name.replace("_", "-")
            raise UserError(f"{flag} must name a place: got ''; give --{flag} PLACE, or `.` for the current directory.")


def _check_tables(config: Any) -> None:
    """The first page of what is listed: a folder with an image in it, a table with the columns it must have."""
    pick = Pick(config.include, config.exclude) if isinstance(config, ScoreConfig) else None
    for place in getattr(config, "images", ()):
        _look_into(place, pick)
    for name in ("data", "labels"):
        if place := getattr(config, name, None):
            if name == "labels" and not tables.is_table(place):
                known = ", ".join(tables.TABLE_SUFFIXES)
                raise UserError(f"labels must be a table, by its name ({known}): got {place}; give one with uri,label.")
            _look_into(place, None)


def _look_into(place: str, pick: Pick | None) -> None:
    for _ in manifest.pages_of([place], pick=pick, limit=1):
        pass  # the other files that come before the first image


def _check_outputs_of_others(config: Any) -> None:
    if getattr(config, "skip_known", None):
        place = files.absolute(config.skip_known)
        if not files.exists(files.join(place.removesuffix("/predictions"), "predictions")):
            raise UserError(f"skip-known must name the output of a scoring run: {place} has no predictions/; check it.")
    if not isinstance(config, EvaluateConfig):
        return
    if config.predictions is not None:
        label_join.scoring_run(config.predictions)
    if config.compare is not None:
        place = files.absolute(config.compare)
        if not files.exists(files.join(place, "metrics.json")):
            raise UserError(f"compare must be the output of jobs/evaluate.py: {place} has no metrics.json; check it.")


def _check_extras(config: Any) -> None:
    if group_regex := getattr(config, "group_regex", None):
        labels.group_pattern(group_regex)
    if not isinstance(config, TrainConfig):
        return
    if config.weights not in (None, *GIVEN_BY_NAME) and not files.exists(config.weights):
        place = files.absolute(config.weights)
        raise UserError(f"weights must be imagenet, none, a file or a bundle: {place} does not exist; check the path.")
    if config.mlflow_uri and not importlib.util.find_spec("mlflow"):
        raise UserError("mlflow-uri needs MLflow, which is not installed; pip install -e '.[mlflow]'.")


# --- the output


def _check_output(config: Any) -> None:
    output = files.absolute(config.output)
    if is_submitted() and files.scheme_of(config.output) is None and not _is_absolute(config.output):
        raise UserError(
            f"output must be an absolute path or a URI in a submitted job: {config.output} would be {output}, in the "
            "copy of the working directory that Ray deletes; give s3://..., or a path that all nodes share."
        )
    if isinstance(config, QuickstartConfig):
        _check_writable(output)
        return
    if config.resume:
        files.list_names(output)  # refuses a file
    else:
        outputs.require_new_output(output, resumable=True)
    if files.is_local(output):
        _check_writable(output)
    else:
        _check_remote(output)


def _check_writable(output: str) -> None:
    """Whether the directory can be made; by trying, as permissions alone do not tell (read-only, full, /proc)."""
    there = next(folder for folder in (Path(output), *Path(output).parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"output must be a directory: {there} is a file; name another.")
    try:
        Path(tempfile.mkdtemp(prefix=".probe-", dir=there)).rmdir()
    except OSError as error:
        raise UserError(f"output must be writable: {there} is not ({error.strerror}); name another.") from error


def _check_remote(output: str) -> None:
    mark = files.join(output, f".probe-{os.getpid()}")
    try:
        files.write_bytes(mark, b"")
        files.delete(mark)
    except OSError as error:
        raise UserError(f"output must be writable: {first_line(error)}; check path and credentials.") from error


# --- submitted jobs


def is_submitted() -> bool:
    """Whether `ray job submit` started this process: by its variable, or by the folder that it runs in."""
    return SUBMITTED in os.environ or UNPACKED in Path.cwd().parts


def _is_absolute(place: str) -> bool:
    return os.path.isabs(os.path.expanduser(place))


@contextlib.contextmanager
def _said_where_it_looked(inputs: Sequence[str]) -> Iterator[None]:
    """A relative input of a submitted job is looked for on another machine than the one it was typed on."""
    try:
        yield
    except UserError as error:
        relative = [place for place in inputs if files.scheme_of(place) is None and not _is_absolute(place)]
        if not relative or not is_submitted():
            raise
        raise UserError(
            f"{error} In a submitted job a relative path such as {relative[0]} is looked for in {Path.cwd()}, on the "
            "node that runs it; give s3://..., or a path that all nodes share."
        ) from error
