"""`ray job submit` to a fresh `ray start --head`, with token authentication, from a checkout of its own."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checkout import ROOT
from clusters import free_port, started_head
from processes import halted, scorer_processes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = str(Path(sys.executable).with_name("ray"))
VERSION = "0.0.0+submitted"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy with a version of its own, so that it shows which code a job ran."""
    folder = tmp_path_factory.mktemp("checkout")
    left_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=left_out, dirs_exist_ok=True)
    for name in (".git", ".venv", "runs", "deepfake_ray/__pycache__"):  # what lies in a checkout that is worked in
        (folder / name).mkdir()
        (folder / name / "large").write_bytes(os.urandom(2_000_000))
    init = folder / "deepfake_ray" / "__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{VERSION}"', init.read_text()))
    return folder


class Head:
    """A fresh one-node cluster, and `ray job` against it."""

    def __init__(self, checkout, folder):
        self.folder = folder
        self.port, self.metrics_port = free_port(), free_port()
        self._checkout = checkout

    def started(self):
        return started_head(
            "--num-cpus=2", f"--dashboard-port={self.port}", "--dashboard-host=127.0.0.1", f"--temp-dir={self.folder}",
            f"--metrics-export-port={self.metrics_port}", environment={"RAY_metrics_report_interval_ms": "500"},
        )  # fmt: skip

    def job(self, *arguments, check=False):
        """Run `ray job` and its arguments."""
        return subprocess.run(
            [RAY, "job", *map(str, arguments)], cwd=self._checkout, capture_output=True, text=True, timeout=240,
            check=check, env={**os.environ, "RAY_ADDRESS": f"http://127.0.0.1:{self.port}"},
        )  # fmt: skip

    def metrics(self):
        """value of each of the project's metrics, by its name with its labels, as Prometheus would read them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if line.startswith("ray_deepfake_ray_"))


@pytest.fixture(scope="module")
def head(checkout):
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = Head(checkout, folder)  # its sockets' paths must be short
        with found.started():
            yield found


@pytest.fixture(scope="module")
def trained_there(head, sample_folder, tmp_path_factory):
    """The output of a submitted training, what the submission said, and the metrics that it had meanwhile."""
    output = tmp_path_factory.mktemp("submitted") / "run"
    metrics, over = {}, threading.Event()

    def watch():
        while not over.wait(0.5):
            with contextlib.suppress(OSError):  # the agent is busy, or not there yet
                metrics.update(head.metrics())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done = head.job(
            "submit", "--working-dir", ".", "--", "python", "jobs/train.py", "--data", sample_folder, "--output",
            output, "--epochs", 3, "--global-batch-size", 64,
        )  # fmt: skip
    finally:
        over.set()
        watcher.join()
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout + done.stderr, metrics


def test_a_submitted_training_runs_the_code_that_was_sent(trained_there):
    output, said, _ = trained_there
    config = json.loads((output / "config.json").read_text())
    assert config["versions"]["deepfake_ray"] == VERSION
    assert (output / "_SUCCESS").exists()
    assert "epoch 1: loss" in said
    assert "train: 1,200 of 1,200 images" in said


def test_the_upload_is_small(trained_there, head):
    """What was unpacked from it is larger than what was sent."""
    (package,) = Path(head.folder).glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    files = [path for path in package.rglob("*") if path.is_file()]
    assert (package / "jobs" / "train.py") in files
    assert sum(path.stat().st_size for path in files) < 2**20


def test_prometheus_finds_the_images(trained_there):
    output, _, metrics = trained_there
    images = {name: float(value) for name, value in metrics.items() if name.startswith("ray_deepfake_ray_images_total")}
    assert all('outcome="ok"' in name for name in images)
    (name,) = (name for name in images if 'stage="train"' in name)  # beside those of the validation's scoring
    assert f'run="{output}"' in name
    assert 0 < images[name] <= 1200


def test_a_mistake_fails_the_job_with_one_line(head, tmp_path):
    done = head.job(
        "submit", "--working-dir", ".", "--", "python", "jobs/score.py", "--images", tmp_path, "--model",
        tmp_path / "nothing", "--output", tmp_path / "o",
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Job entrypoint command failed with exit code 2" in said
    (line,) = set(re.findall(r"^error: .*", said, re.MULTILINE))  # Ray repeats the end of the log
    assert "model must be a bundle" in line
    assert "Traceback" not in said
    assert not (tmp_path / "o").exists()


def test_an_output_in_the_upload_is_refused(head, sample_folder):
    """Ray deletes it with the job: the results would be gone, and the job would have succeeded."""
    done = head.job(
        "submit", "--working-dir", ".", "--", "python", "jobs/train.py", "--data", sample_folder, "--output", "runs/one"
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Job entrypoint command failed with exit code 2" in said
    assert re.search(r"output must be an absolute path .* runs/one would be /.*/working_dir_files/.*/runs/one", said)
    assert not list(Path(head.folder).rglob("working_dir_files/*/runs/one"))


def test_a_stopped_job_goes_on_with_resume_and_is_evaluated(head, trained_there, sample_folder, tmp_path):
    model, output = trained_there[0] / "model", tmp_path / "scores"
    command = ["python", "jobs/score.py", "--images", sample_folder, "--model", model, "--output", output,
               "--batch-size", 2, "--profile"]  # fmt: skip
    name = "to-be-stopped"
    head.job("submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--", *command, check=True)
    deadline = time.monotonic() + 90
    while len(list((output / "chunks").glob("*.parquet"))) < 3:
        assert time.monotonic() < deadline, head.job("logs", name).stdout
        time.sleep(0.01)
    with halted(pid for pids in scorer_processes() for pid in pids):  # `ray job stop` takes seconds to start
        head.job("stop", name, check=True)
        assert "'to-be-stopped' was stopped" in head.job("status", name).stdout
    assert f"stopped by SIGTERM: what is written stays in {output}; the same command" in head.job("logs", name).stdout
    assert not (output / "_SUCCESS").exists()
    done = head.job("submit", "--working-dir", ".", "--", *command, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(output / "predictions")
    assert sorted(rows["row"].to_pylist()) == list(range(560))
    evaluation = tmp_path / "evaluation"
    done = head.job(
        "submit", "--working-dir", ".", "--", "python", "jobs/evaluate.py", "--data", sample_folder, "--model", model,
        "--output", evaluation,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (evaluation / "report.html").exists()
    assert json.loads((evaluation / "metrics.json").read_text())["num_scored"] == 80
    assert pq.read_table(evaluation / "predictions").num_rows == 80
