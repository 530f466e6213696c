"""Training, once or, with `--leave-one-source-out`, once without each source: how well are unseen fakes found?"""

import csv
import io
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepfake_ray import schema
from deepfake_ray.config import EvaluateConfig, JobConfig, TrainConfig
from deepfake_ray.console import say, show
from deepfake_ray.data.labels import load_labelled
from deepfake_ray.drivers import summaries
from deepfake_ray.drivers.evaluate import evaluate
from deepfake_ray.drivers.resuming import CONFIG, asked_settings, is_done, require_same_request
from deepfake_ray.drivers.train import train
from deepfake_ray.drivers.training_data import drop_leaks
from deepfake_ray.errors import UserError
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.output_lock import OutputLock, hold_output

MATRIX = "leave_one_source_out.csv"
NOTHING = "(nothing)"


def train_or_cross(config: TrainConfig) -> dict[str, Any]:
    """What jobs/train.py does; returns its summary.

    Raises:
        UserError: see the messages.
        JobError: training or scoring failed.
    """
    output = files.absolute(config.output)
    if config.leave_one_source_out:
        return {"output": output, "leave_one_source_out": leave_one_source_out(config)}
    return summaries.summarise_bundle(train(config), output)


def leave_one_source_out(config: TrainConfig) -> list[dict[str, Any]]:
    """Train on all sources, then without each, and test each model on every source.

    Writes OUTPUT/all and OUTPUT/without-SOURCE, each with what training writes and `evaluation/`, and
    OUTPUT/leave_one_source_out.csv: left_out, tested_on, roc_auc, recall_fake, num_fake.

    Raises:
        UserError: fewer than two sources of fakes, or no test split.
    """
    output = files.absolute(config.output)
    if is_done(config, output, "a matrix of sources"):
        return _cells(files.join(output, MATRIX))
    with hold_output(output) as lock:
        return _leave_one_source_out(config, output, lock)


def _leave_one_source_out(config: TrainConfig, output: str, lock: OutputLock) -> list[dict[str, Any]]:
    settings_uri = files.join(output, CONFIG)
    if not config.resume:
        outputs.require_new_output(output, resumable=True)
    elif files.exists(settings_uri):
        require_same_request(config, files.read_json(settings_uri))
    images = drop_leaks(load_labelled(config), config, output).table
    fakes = images.filter(pc.equal(images["label"], schema.CLASSES[schema.FAKE]))
    sources = sorted(source for source in set(fakes["source"].to_pylist()) if source is not None)
    if len(sources) < 2:
        raise UserError(
            f"leave-one-source-out needs fakes of two sources or more: {config.data} has {sources}; put them into "
            "folders below the class (Train/Fake/SOURCE/...), or give --labels with a column source."
        )
    if schema.TEST not in images["split"].to_pylist():
        raise UserError(f"leave-one-source-out needs a test split: {config.data} has none; add one.")
    files.write_json(settings_uri, asked_settings(config))
    cells = [cell for left_out in (None, *sources) for cell in _without(left_out, images, config, output)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(cells[0]))
    writer.writeheader()
    writer.writerows(cells)
    files.write_bytes(files.join(output, MATRIX), text.getvalue().encode())
    lock.mark_finished()
    show(matrix(cells, sources) + f"\n  matrix  {files.join(output, MATRIX)}")
    return cells


def _cells(place: str) -> list[dict[str, Any]]:
    """Of a written matrix."""
    numbers = {"roc_auc": float, "recall_fake": float, "num_fake": int}
    return [
        {name: numbers.get(name, str)(value) if value else None for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(files.read_bytes(place).decode()))
    ]


def _without(left_out: str | None, images: pa.Table, config: TrainConfig, output: str) -> Iterator[dict[str, Any]]:
    """Train without a source and test on all; the cells of its row of the matrix."""
    name = "all" if left_out is None else f"without-{quote(left_out, safe='')}"
    say(f"--- trained on {'all sources' if left_out is None else f'all sources but {left_out}'}")
    place = files.join(output, name)
    is_test = pc.equal(images["split"], schema.TEST)
    keep = pc.or_kleene(is_test, pc.fill_null(pc.not_equal(images["source"], left_out or ""), True))
    data = files.join(output, f"{name}.parquet")
    columns = ["uri", "label", "split", "source", "group"]
    rows = images.filter(keep).select(columns)
    if files.exists(data):
        _require_the_same_images(rows, data, config)
    else:
        with files.new_file(data) as path:
            pq.write_table(rows, path)
    common = {field.name: getattr(config, field.name) for field in fields(JobConfig)} | {"data": data, "limit": None}
    train(
        replace(
            config, labels=None, group_regex=None, split_by="folder", leave_one_source_out=False,
            **common | {"output": place},
        )
    )  # fmt: skip
    place_of = {"model": files.join(place, "model"), "output": files.join(place, "evaluation")}
    result = evaluate(EvaluateConfig(split="test", split_by="folder", **common | place_of))
    for of in result["slices"]:
        if of["by"] == "source" and of["num_fake"]:
            yield {
                "left_out": left_out or NOTHING,
                "tested_on": of["value"],
                "roc_auc": of["roc_auc"],
                "recall_fake": of["recall_fake"],
                "num_fake": of["num_fake"],
            }


def _require_the_same_images(rows: pa.Table, begun_with: str, config: TrainConfig) -> None:
    """Or the models of one matrix would be trained and tested on different images."""
    with files.open_file(begun_with) as file:
        before = pq.read_table(file)
    if not before.equals(rows):
        raise UserError(
            f"--resume goes on with the same images: {config.data} had {len(before):,} of them and has {len(rows):,} "
            "now, or others; put them back, or write to a new output."
        )


def matrix(cells: list[dict[str, Any]], sources: list[str]) -> str:
    """ROC AUC as a table to be read: a row for each model, a column for each tested source, unseen ones in brackets."""
    width = max(len(name) for name in (*sources, NOTHING)) + 2
    lines = ["ROC AUC, tested on the fakes of:", "left out".ljust(width) + "".join(one.rjust(width) for one in sources)]
    for left_out in (NOTHING, *sources):
        of = {cell["tested_on"]: cell["roc_auc"] for cell in cells if cell["left_out"] == left_out}
        shown = ["–" if of.get(one) is None else f"{of[one]:.4f}" for one in sources]
        shown = [f"[{text}]" if one == left_out else f"{text} " for one, text in zip(sources, shown, strict=True)]
        lines.append(left_out.ljust(width) + "".join(text.rjust(width) for text in shown))
    return "\n".join(lines)
