"""The command `deepfake-ray`: the jobs by their names, and the scores of a few images without Ray."""

import json
import subprocess
import sys

import pytest
from checkout import ROOT
from chunks import jpeg
from commands import CONFIGS

from deepfake_ray import Detector, starting

COMMAND = "from deepfake_ray.starting import main; main()"


def run(*words):
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_every_job_is_there():
    assert {name: config for name, (config, _) in starting.JOBS.items()} == {
        name: config.__name__ for name, config in CONFIGS.items()
    }
    assert run("train", "--help").stdout.startswith("usage: deepfake-ray train")
    done = run("trian")
    assert (done.returncode, "got 'trian'" in done.stdout + done.stderr) == (2, True)


@pytest.fixture
def folder(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "2.jpg").write_bytes(b"broken")
    return tmp_path


def test_few_images_are_a_table(folder, untrained):
    done = run("score", folder, "--model", untrained, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    head, first, second, broken = done.stdout.splitlines()
    rows = Detector(untrained, precision="fp32")([folder / "0.jpg", folder / "1.jpg"])
    assert head.split() == ["p_fake", "verdict", "image"]
    assert [first.split(), second.split()] == [
        [f"{row['p_fake']:.4f}", row["predicted_label"], row["uri"]] for row in rows
    ]
    assert broken.split()[:4] == ["-", "error", f"{folder}/2.jpg", "(not_an_image:"]
    found = json.loads(run("score", folder, "--model", untrained, "--json").stdout)["results"]
    assert [row["status"] for row in found] == ["ok", "ok", "error"]


def test_many_images_need_an_output(tmp_path, untrained):
    for i in range(51):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    done = run("score", tmp_path, "--model", untrained)
    assert (done.returncode, done.stderr) == (
        2,
        "error: Without --output there may be 50 images: got more; add --output FOLDER.\n",
    )


def test_the_command_that_metrics_name(monkeypatch):
    """A program that calls `deepfake_ray.evaluate` may have a password on its command line."""
    from deepfake_ray import interrupts
    from deepfake_ray.drivers.evaluate import command_line

    monkeypatch.setattr(sys, "argv", ["serve.py", "--password", "x"])
    assert command_line() == "deepfake_ray.evaluate()"
    monkeypatch.setattr(interrupts, "is_job", lambda: True)
    monkeypatch.setattr(sys, "argv", ["jobs/evaluate.py", "--data", "my photos"])
    assert command_line() == "python jobs/evaluate.py --data 'my photos'"
    monkeypatch.setattr(sys, "argv", ["deepfake-ray evaluate", "--data", "d"])
    assert command_line() == "deepfake-ray evaluate --data d"
