"""Write docs/reference.md from the code: flags, files, columns, error codes, exit codes.

    python scripts/write_reference.py

The flags are the fields of the configurations and the docstrings below them, which `--help` shows, too; the columns
are those of `schema.py`, the error codes those of `errors.py`, the exit codes those of `drivers/cli.py`. What the code
cannot say, which is what a column or a file is for, stands here; a column without a word about it is refused.
"""

import ast
import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa

from deepfake_ray import config, errors, schema, starting
from deepfake_ray.drivers import cli

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

JOBS = {name: getattr(config, class_name) for name, (class_name, _) in starting.JOBS.items()}

FILES = {
    "train": {
        "model/": "the bundle, see below",
        "manifest/": "the images it was trained on: Parquet, one row per image",
        "audit.json": "what was found in the data before training: splits, classes, leaks, zero-pixel AUC, warnings",
        "history.csv": "one row per epoch, current after each",
        "training.png": "the curves of `history.csv`",
        "tensorboard/": "the same for TensorBoard",
        "config.json": "the resolved configuration, versions, git revision",
        "checkpoints/": "the last and the best state of the run",
        "leave_one_source_out.csv": "with `--leave-one-source-out`: the matrix; the runs are in directories beside it",
        "_SUCCESS": "written last: everything above is complete",
    },
    "score": {
        "predictions/": "`part-*.parquet`, one row per listed image",
        "run.json": "counts by status, code and verdict, a histogram of the scores, images/s, precision, configuration",
        "manifest/": "the images as they were listed, and `_other_files.parquet`, which names files that are no images",
        "chunks/": "while the run is unfinished: the rows that are scored, one file per chunk",
        "_LOCK": "while the run is writing: which run holds the output",
        "_SUCCESS": "written last: everything above is complete",
    },
    "evaluate": {
        "report.html": "everything on one page: no network, no other file needed",
        "metrics.json": "the metrics, with intervals, by threshold and by slice; audit; warnings",
        "metrics.parquet": "the same, one row per figure",
        "classification_report.txt": "scikit-learn's, at the threshold of the verdicts",
        "figures/": "the report's figures as PNG",
        "predictions/": "as of scoring, with the true labels",
        "degraded/": "with `--degrade`: the scores of the degraded images",
        "manifest/": "the images that were evaluated; not with `--predictions`",
        "run.json": "as of scoring",
        "_SUCCESS": "written last: everything above is complete",
    },
    "quantize": {
        "model/": "the bundle in 8-bit integers",
        "_SUCCESS": "written last: everything above is complete",
    },
}
"""What a finished output may hold, by job."""

BUNDLE = {
    "model.safetensors": "the weights: float32, torchvision's keys",
    "model.json": "format version, arch, classes, preparation of the images, temperature, thresholds, precision, "
    "prior, provenance, sha256 of the weights",
    "MODEL_CARD.md": "the same in words, with a row for each evaluation",
    "training_images.parquet": "location, split, sha256, perceptual hash and size of each image it was trained or "
    "tuned on",
    "evaluations/": "the metrics of each evaluation: one JSON file per data set and split",
}
"""What `model/` holds."""

COLUMNS = {
    "row": "position in the manifest",
    "uri": "the image, as listed",
    "label": "`real` or `fake`, where it is known",
    "split": "`train`, `validation` or `test`, where it is known",
    "source": "generator or manipulation: the folder's name, or the table's column",
    "group": "the person or video, by `--group-regex` or the table's column",
    "num_bytes": "size of the file",
    "etag": "of the object, as the bucket lists it",
    "mtime": "time of the last change, as listed",
    "sha256": "of the file; null if it could not be fetched, or is no image",
    "format": "as decoded; null if it was not",
    "width": "in pixels, upright; null if it was not decoded",
    "height": "in pixels, upright; null if it was not decoded",
    "jpeg_quality": "estimated from the quantisation table; null for other formats",
    "status": "`ok` or `error`",
    "error_code": "null when `ok`, else one of the [error codes](#error-codes)",
    "error_message": "null when `ok`, else the reason in words",
    "logit": "score before temperature; above 0 is towards fake",
    "p_fake": "sigmoid(logit / temperature), 0 to 1; null when it could not be scored",
    "predicted_label": "`fake` where `logit` >= `threshold_logit`, else `real`",
    "threshold": "the `p_fake` of `--threshold`",
    "model_id": "which model, in which precision",
    "run_id": "which run",
    "scored_at": "when",
    "true_label": "the manifest's `label`",
    "threshold_logit": "the threshold on `logit` that decides; `p_fake` near 0 and 1 has too few digits for it",
}
"""What the columns of manifests and predictions hold."""


def escaped(text: str) -> str:
    """One line of text as the cell of a table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; the cells are Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def docstrings(owner: type[Any]) -> dict[str, str]:
    """The string below each field or member of a class, by name; inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if not base.__module__.startswith("deepfake_ray"):
            continue
        (body,) = (node.body for node in ast.parse(inspect.getsource(base)).body if isinstance(node, ast.ClassDef))
        for node, below in itertools.pairwise(body):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found |= {one.id: str(below.value.value) for one in targets if isinstance(one, ast.Name)}
    return found


def default_of(field: Field[Any]) -> str:
    """The cell of a flag's default."""
    if field.default is MISSING:
        return "required"
    is_unset = field.default is None or field.default is False or field.default in ((), "")
    return "" if is_unset else f"`{field.default}`"


def type_of(field: Field[Any]) -> str:
    """What a flag takes: its choices, or the kind of value."""
    if field.type is bool:
        return "nothing"
    if get_origin(field.type) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(field.type))
    words = {int: "integer", float: "number", str: "text"}
    kinds = [words[kind] for kind in (get_args(field.type) or (field.type,)) if kind in words]
    several = " ..." if get_origin(field.type) is tuple else ""
    choices = [choice for one in get_args(field.type) for choice in get_args(one)]  # of Literal[...] | None
    return " ".join(f"`{choice}`" for choice in choices) or " or ".join(kinds) + several


def flags(job: type[Any]) -> str:
    """The table of a job's flags, the required ones first."""
    helps = docstrings(job)
    ordered = sorted(fields(job), key=lambda field: field.default is not MISSING)
    rows = [
        (f"`--{field.name.replace('_', '-')}`", type_of(field), default_of(field), escaped(helps[field.name]))
        for field in ordered
    ]
    return table(("flag", "takes", "default", ""), rows)


def columns(of: pa.Schema) -> str:
    """The table of a schema's columns.

    Raises:
        KeyError: `COLUMNS` lacks one.
    """
    rows = [
        (f"`{field.name}`", f"{field.type}", "" if field.nullable else "never", COLUMNS[field.name]) for field in of
    ]
    return table(("column", "type", "null", ""), rows)


def named(what: dict[str, str]) -> str:
    """A table of names and what they are."""
    return table(("file", ""), [(f"`{name}`", words) for name, words in what.items()])


def error_codes(of: type[StrEnum]) -> str:
    """The table of the error codes."""
    words = docstrings(of)
    return table(("code", ""), [(f"`{code.value}`", escaped(words[code.name])) for code in of])


def exit_codes() -> str:
    """The table of the exit codes, as the command line's own documentation has them."""
    (text,) = re.findall(r"Returns:\s+The exit code: (.*?)\.(?:\n|$)", inspect.getdoc(cli.main) or "", re.DOTALL)
    pairs = [one.strip().partition(" ") for one in " ".join(text.split()).split(",")]
    return table(("code", ""), [(f"`{code}`", words) for code, _, words in pairs])


def sections() -> Iterator[str]:
    """The page, piece by piece."""
    yield "# Reference"
    yield (
        "<!-- Written by scripts/write_reference.py: change the code or that script, then run it. -->\n\n"
        "[Flags](#flags) · [files of each output](#files) · [columns](#columns) · [error codes](#error-codes) · "
        "[exit codes](#exit-codes)"
    )
    yield "## Flags"
    yield "An empty default means: what the last column says. `--help` of each job shows the same."
    for name, job in JOBS.items():
        yield f"### jobs/{name}.py"
        yield " ".join((inspect.getdoc(job) or "").split())
        yield flags(job)
    yield "## Files"
    yield "Every file appears whole or not at all. A name that ends with `/` is a directory."
    for name, what in FILES.items():
        yield f"### Output of jobs/{name}.py"
        yield named(what)
    yield "### The bundle (model/)"
    yield named(BUNDLE)
    yield "## Columns"
    yield "All columns are always there, null where unknown. New ones are appended, and none changes its meaning."
    yield "### Predictions"
    yield "One row for every listed image, never dropped, never invented."
    yield columns(schema.PREDICTIONS)
    yield "`degraded/predictions/` of an evaluation has one more, `degradation`: which one the image went through."
    yield "### Manifest"
    yield columns(schema.MANIFEST)
    yield "## Error codes"
    yield "Why an image has no score, in the column `error_code`."
    yield error_codes(errors.ErrorCode)
    yield "## Exit codes"
    yield exit_codes()


def page() -> str:
    """The whole of docs/reference.md."""
    return "\n\n".join(sections()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
