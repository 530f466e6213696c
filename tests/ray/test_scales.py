"""Constants of scale decide how much is done at a time, never what comes out: a run in which all of them are tiny."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checkout import ROOT
from scored import read, score

from deepfake_ray.config import EvaluateConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# The sample's images have 3 KB, its steps 64 images. Ray Data cuts a block that is over 1.5 times its target: here
# each task's block of 13 images, into several, and a step takes five tasks. Streams end in the middle of a step.
TINY = {
    "cluster.ray_data": {"MAX_BLOCK_BYTES": 8192, "LEAST_BYTES_AHEAD": 1 << 19, "SECONDS_BETWEEN_STEPS": [0.005, 0.02]},
    "training.batches": {"IMAGES_PER_TASK": 13, "TASKS_PER_STREAM": 30},
    "data.manifest": {"ROWS_PER_GROUP": 7, "ROWS_PER_FILE": 21},
    "scoring.chunk_files": {"ROWS_PER_PART": 7, "ROWS_PER_GROUP": 3},
    "data.listing": {"ROWS_PER_PAGE": 5},
    "images.fetch": {"REMOTE_REQUESTS": 2},
    "drivers.file_facts": {"IMAGES_PER_LOOK": 37},
}

# Python's own start-up hook, in each process of the run: sets the constants of a module as soon as it is there, before
# others import them from it.
HOOK = """
import importlib.util, json, os, sys

class Shrink:
    def find_spec(self, name, path=None, target=None):
        tiny = json.loads(os.environ["TINY_SCALES"]).get(name.removeprefix("deepfake_ray."))
        if tiny is None or not name.startswith("deepfake_ray."):
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            assert set(tiny) <= set(vars(module)), name
            vars(module).update(tiny)
            with open(os.environ["TINY_SCALES_LOG"], "a") as log:
                log.write(f"{name} {os.getpid()}\\n")
        spec.loader.exec_module = exec_module
        return spec

if "TINY_SCALES" in os.environ:
    sys.meta_path.insert(0, Shrink())
"""

RUN = """
import sys
import ray
from deepfake_ray.config import EvaluateConfig, ScoreConfig, TrainConfig
from deepfake_ray.drivers.evaluate import evaluate
from deepfake_ray.drivers.score import score
from deepfake_ray.drivers.train import train

data, output = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
train(TrainConfig(data=data, output=f"{output}/run", epochs=2, global_batch_size=64))
model = f"{output}/run/model"
score(ScoreConfig(images=(f"{data}/Test",), model=model, output=f"{output}/scores", batch_size=16, precision="fp32"))
evaluate(EvaluateConfig(data=data, model=model, output=f"{output}/evaluation", batch_size=16, precision="fp32"))
"""

OF_THE_RUN = {"run_id", "scored_at"}


@pytest.fixture(scope="module")
def tiny(sample_folder, tmp_path_factory):
    """The outputs of a training, a scoring and an evaluation with tiny scales, in a Ray of their own."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "sitecustomize.py").write_text(HOOK)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TINY_SCALES": json.dumps(TINY),
        "TINY_SCALES_LOG": str(folder / "log"),
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(sample_folder), str(folder)],
        env=environment, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def learned(output):
    """history.csv without what the clock decides."""
    of_the_clock = {"epoch_s", "images_per_s", "data_wait_share"}
    with open(output / "history.csv") as file:
        return [{k: v for k, v in row.items() if k not in of_the_clock} for row in csv.DictReader(file)]


def without_places(metrics):
    """metrics.json without what says where the run was."""
    return {name: value for name, value in metrics.items() if name not in ("command", "model")}


def test_tiny_scales_reached_every_kind_of_process(tiny):
    loaded = [line.split() for line in (tiny / "log").read_text().splitlines()]
    processes = {name: {pid for module, pid in loaded if module == f"deepfake_ray.{name}"} for name in TINY}
    assert all(processes.values())
    assert len(processes["training.batches"]) >= 3  # the driver, a training worker, and what reads for it
    assert len(processes["data.manifest"]) >= 3  # scorers, too
    assert len(list((tiny / "run" / "manifest").glob("part-*.parquet"))) == -(-560 // 21)
    assert len(list((tiny / "scores" / "predictions").glob("*.parquet"))) > 1


def test_training_does_not_depend_on_scales(tiny, trained):
    assert learned(tiny / "run") == learned(trained)
    models = [json.loads((place / "model" / "model.json").read_text()) for place in (tiny / "run", trained)]
    for name in ("model_id", "temperature", "thresholds"):
        assert models[0][name] == models[1][name]


def test_the_manifest_does_not_depend_on_scales(tiny, trained):
    tables = [pq.read_table(place / "manifest").sort_by("row") for place in (tiny / "run", trained)]
    assert tables[0].equals(tables[1])
    audits = [json.loads((place / "audit.json").read_text()) for place in (tiny / "run", trained)]
    assert audits[0] == audits[1]


def test_scores_do_not_depend_on_scales(tiny, trained, sample_folder, tmp_path):
    score(
        images=sample_folder / "Test", model=trained / "model", output=tmp_path / "o", batch_size=16, precision="fp32"
    )
    tables = [read(place).to_pandas().drop(columns=list(OF_THE_RUN)) for place in (tiny / "scores", tmp_path / "o")]
    assert tables[0].equals(tables[1])


def test_metrics_do_not_depend_on_scales(tiny, trained, sample_folder, tmp_path):
    from deepfake_ray.drivers.evaluate import evaluate

    output = tmp_path / "o"
    evaluate(
        EvaluateConfig(
            data=str(sample_folder), model=str(trained / "model"), output=str(output), batch_size=16, precision="fp32"
        )
    )
    found = [json.loads(Path(place, "metrics.json").read_text()) for place in (tiny / "evaluation", output)]
    assert without_places(found[0]) == without_places(found[1])
