"""Training that loses its driver, a worker or a node; and that gives the same result on any number of workers."""

import contextlib
import csv
import json
import os
import shutil
import signal
from pathlib import Path

import mlflow
import numpy as np
import pytest
import sklearn.metrics
import torch
from clusters import cluster
from PIL import Image
from processes import kill_when, processes_named, run_job, start_job, wait_until
from torch import nn

from deepfake_ray.config import TrainConfig
from deepfake_ray.drivers import cli
from deepfake_ray.drivers.train import train
from deepfake_ray.errors import UserError
from deepfake_ray.models import bundle, networks

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def history(output):
    """The columns that say what was learned, as text: to the bit."""
    with contextlib.suppress(FileNotFoundError), open(Path(output) / "history.csv") as file:
        return [
            {k: v for k, v in row.items() if k == "epoch" or k.startswith(("train_", "val_", "learning"))}
            for row in csv.DictReader(file)
        ]
    return []


def model_id(output):
    return json.loads((Path(output) / "model" / "model.json").read_text())["model_id"]


def last_saved(output):
    """Epoch and step that a resumed run would begin at, as Ray Train has them on disk."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        state = json.loads(Path(output, "checkpoints", "checkpoint_manager_snapshot.json").read_text())
        metrics = state["latest_checkpoint_result"]["metrics"]
        return metrics["epoch"], metrics.get("step", 0)
    return 0, 0


@pytest.fixture(scope="module")
def flags(sample_folder):
    # 400 images in twenties: an epoch has 20 steps, and a state is saved after 7 and 14 of them, and at its end.
    return ["--data", sample_folder, "--epochs", 3, "--global-batch-size", 20, "--checkpoint-every-steps", 7]


@pytest.fixture(scope="module")
def whole(ray_2_cpus, flags, tmp_path_factory):
    """A run that nothing happened to."""
    output = tmp_path_factory.mktemp("whole") / "run"
    done = run_job("train", *flags, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


def test_the_last_and_the_best_checkpoint_are_kept(whole):
    best = max(range(3), key=lambda index: float(history(whole)[index]["val_auc"]))
    kept = [path for path in (whole / "checkpoints").glob("checkpoint_*") if path.is_dir()]  # Ray's snapshot is a file
    assert len(kept) == (1 if best == 2 else 2)
    assert last_saved(whole) == (3, 0)


def test_a_killed_driver_goes_on_in_the_middle_of_an_epoch(whole, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow would rather have a database
    output = tmp_path / "run"
    flags = [*flags, "--mlflow-uri", tmp_path / "mlflow"]
    job = start_job("train", *flags, "--output", output)
    kill_when(job, lambda: last_saved(output) >= (2, 7))
    assert last_saved(output)[1]
    assert not (output / "_SUCCESS").exists()
    for more, message in (([], "add --resume"), (["--resume", "--seed", "1"], "seed was 0 and is now 1")):
        with pytest.raises(UserError, match=message):
            train(cli.parse(TrainConfig, [*map(str, flags), "--output", str(output), *more]))
    resumed = run_job("train", *flags, "--output", output, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["epoch"] for row in history(output)] == ["1", "2", "3"]
    assert history(output) == history(whole)
    assert model_id(output) == model_id(whole)
    client = mlflow.MlflowClient(tracking_uri=str(tmp_path / "mlflow"))
    (run,) = client.search_runs([client.get_experiment_by_name("deepfake_ray").experiment_id])
    assert (run.info.status, run.data.params["global_batch_size"]) == ("FINISHED", "20")
    logged = client.get_metric_history(run.info.run_id, "val/auc")
    assert [(m.step, m.value) for m in logged] == [(int(r["epoch"]), float(r["val_auc"])) for r in history(output)]


def test_a_killed_worker_is_replaced_in_the_middle_of_an_epoch(whole, flags, tmp_path):
    output = tmp_path / "run"
    job = start_job("train", *flags, "--output", output)
    wait_until(job, lambda: last_saved(output) >= (2, 7))
    (worker,) = processes_named("ray::RayTrainWorker", below=os.getpid())
    os.kill(worker, signal.SIGKILL)
    text, _ = job.communicate(timeout=180)
    assert job.returncode == 0, text
    assert history(output) == history(whole)
    assert model_id(output) == model_id(whole)


def metrics_of(model, folder):
    """Loss, accuracy and AUC of a bundle on the validation split, without anything of the pipeline."""
    spec, arrays = bundle.load(str(model))
    network = networks.build(spec.arch).eval()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    paths = sorted((folder / "Validation").rglob("*.jpg"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    x = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    labels = np.array(["Fake" in path.parts for path in paths])
    with torch.inference_mode():
        outputs = network(x)
    logits = (outputs[:, 1] - outputs[:, 0]).numpy()
    loss = nn.functional.cross_entropy(outputs, torch.tensor(labels, dtype=torch.int64)).item()
    return [loss, np.mean((logits >= 0) == labels), sklearn.metrics.roc_auc_score(labels, logits)]


def validation_of(row):
    return [float(row[f"val_{name}"]) for name in ("loss", "accuracy", "auc")]


def best_epoch(output):
    return json.loads((Path(output) / "model" / "model.json").read_text())["provenance"]["best_epoch"]


def test_uneven_shards_of_several_workers_learn_and_measure_what_one_does(sample_folder, tmp_path):
    """4 CPUs and 1, 2 or 3 workers; 3 divide neither the batch of 200 nor the 80 validation images.

    Batch norms are at rest (the backbone is frozen) and nothing is dropped out, so nothing but rounding differs.
    """
    flags = ["--data", sample_folder, "--arch", "resnet18", "--weights", "none", "--image-size", 32, "--epochs", 2,
             "--freeze-backbone-epochs", 2, "--learning-rate", 0.01, "--global-batch-size", 200,
             "--precision", "fp32"]  # fmt: skip
    rows = {}
    with cluster(4) as nodes:
        for workers, more in ((1, ()), (2, ()), (3, ("--micro-batch-size", 7))):
            output = tmp_path / str(workers)
            done = run_job("train", *flags, *more, "--output", output, "--num-workers", workers, address=nodes.address)
            assert done.returncode == 0, done.stderr
            rows[workers] = history(output)
            # Pillow and simplejpeg may round a pixel differently.
            measured = validation_of(rows[workers][best_epoch(output) - 1])
            assert measured == pytest.approx(metrics_of(output / "model", sample_folder), abs=2e-4)
    assert rows[1][0]["train_loss"] != rows[1][1]["train_loss"]  # it does learn
    for workers in (2, 3):
        for one, several in zip(rows[1], rows[workers], strict=True):
            found = {name: float(value) for name, value in several.items()}
            assert found == pytest.approx({name: float(value) for name, value in one.items()}, rel=1e-5, abs=1e-5)


def test_the_best_epoch_becomes_the_model_not_the_last(trained, sample_folder, tmp_path):
    """A good model unlearns from swapped labels, so that its first epoch is its best."""
    for path in (path for path in sample_folder.rglob("*.jpg") if "Test" not in path.parts):
        split, label, *rest = path.relative_to(sample_folder).parts
        if split == "Train":
            label = {"Real": "Fake", "Fake": "Real"}[label]
        place = tmp_path.joinpath("data", split, label, "-".join(rest))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    output = tmp_path / "run"
    train(
        TrainConfig(
            data=str(tmp_path / "data"), output=str(output), weights=str(trained / "model"), epochs=3,
            global_batch_size=64, learning_rate=1e-3, precision="fp32",
        )
    )  # fmt: skip
    rows = history(output)
    aucs = [float(row["val_auc"]) for row in rows]
    best = int(np.argmax(aucs))
    assert best < 2
    assert best_epoch(output) == best + 1
    found = metrics_of(output / "model", sample_folder)
    assert found == pytest.approx(validation_of(rows[best]), abs=2e-4)
    assert found != pytest.approx(validation_of(rows[-1]), abs=1e-2)


def test_training_goes_on_when_a_node_is_lost(sample_folder, tmp_path, monkeypatch):
    """Two nodes, a worker on each; one node is killed, and the other ends the run alone."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")  # for the lost one, before it tries without
    output = tmp_path / "run"
    flags = ["--data", sample_folder, "--epochs", 4, "--global-batch-size", 20, "--num-workers", "1-2",
             "--shared-storage", "--output", output]  # fmt: skip
    with cluster(2) as nodes:
        lost = nodes.add_node(num_cpus=2)
        job = start_job("train", *flags, address=nodes.address)
        wait_until(job, lambda: last_saved(output) >= (1, 0))
        nodes.remove_node(lost, allow_graceful=False)
        text, _ = job.communicate(timeout=240)
    assert job.returncode == 0, text
    with open(output / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    # Each epoch counted each of the 400 training and 80 validation images once, that of the loss as well.
    assert [round(float(row["images_per_s"]) * float(row["epoch_s"]), 3) for row in rows] == [480.0] * 4
    assert rows[0]["num_workers"] == "2"
    assert rows[-1]["num_workers"] == "1"
    assert np.isfinite([float(row["val_auc"]) for row in rows]).all()
