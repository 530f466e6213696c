"""Joining a cluster that does not let the job in."""

import os
import subprocess
import sys

import pytest
from clusters import free_port
from test_cli import ROOT


@pytest.mark.parametrize("place", ["127.0.0.1:{}", "http://127.0.0.1:{}"])
def test_a_wrong_address_is_said_at_once(place, tmp_path):
    """Ray itself tries for a quarter of an hour where nothing answers."""
    address = place.format(free_port())
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "score.py", "--images", tmp_path, "--model", "m", "--output", tmp_path / "o"],
        env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: RAY_ADDRESS must be")
    assert address in line
    assert "unset it" in line
