"""Joining a cluster that does not let the job in, and a Ray of the job's own."""

import json
import os
import subprocess
import sys

import pytest
from checkout import ROOT
from clusters import free_port

from deepfake_ray.cluster import session


@pytest.mark.parametrize("place", ["127.0.0.1:{}", "http://127.0.0.1:{}"])
def test_a_wrong_address_is_said_at_once(place, untrained, sample_folder, tmp_path):
    """Ray itself tries for a quarter of an hour where nothing answers."""
    address = place.format(free_port())
    flags = ["--images", sample_folder, "--model", untrained, "--output", tmp_path / "o"]
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "score.py", *flags],
        env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    *others, line = done.stderr.splitlines()
    assert len(others) <= 3, "more than what it is doing"
    assert line.startswith("error: RAY_ADDRESS must be")
    assert address in line
    assert "unset it" in line


ALONE = """
import os, sys
sys.path.insert(0, {tests!r})
from deepfake_ray.config import ScoreConfig
from deepfake_ray.drivers.score import score
from deepfake_ray.cluster.session import ray_session
from processes import command_lines
with ray_session():
    score(ScoreConfig(images=[{images!r}], model={model!r}, output={output!r}))
    print(*command_lines(below=os.getpid()), sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_of_the_jobs_own_has_no_processes_for_a_cluster(untrained, sample_folder, tmp_path):
    """Those that gather logs and statistics, ask an autoscaler, share nodes out, and note where actors are."""
    places = {
        "images": sample_folder,
        "model": untrained,
        "output": tmp_path / "o",
        "tests": ROOT / "tests" / "support",
    }
    code = ALONE.format(**{name: str(place) for name, place in places.items()})
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o" / "run.json").read_text())["num_ok"] == 560
    processes = done.stdout.splitlines()
    assert any("raylet" in process for process in processes)
    helpers = ["log_monitor", "monitor.py", "dashboard.py", "_Stats", "ActorLocation", "AutoscalingCoordinator"]
    assert not [process for process in processes if any(helper in process for helper in helpers)]


def test_only_the_line_about_the_log_level_is_kept_back(capfd):
    with session._unannounced():
        os.write(2, b"[10:00 I] logging.cc:303: Set ray log level from environment variable to 3\nthe disk is full\n")
    os.write(2, b"after that\n")
    assert capfd.readouterr().err == "the disk is full\nafter that\n"
