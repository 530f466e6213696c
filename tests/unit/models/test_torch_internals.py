"""torch's private parts: they take effect, and scores come without them, too."""

import sys

import pytest
from torch._inductor import config

from deepfake_ray import console
from deepfake_ray.models.torch_internals import prepare_compiling


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(console, "_said", set())
    with config.patch(freezing=False, compile_threads=3):
        yield


def test_the_compiler_is_set_up(capsys):
    prepare_compiling()
    assert (config.freezing, config.compile_threads) == (True, 1)
    assert capsys.readouterr().err == ""


def test_another_compiler_is_said_once(monkeypatch, capsys):
    import torch

    monkeypatch.delattr(torch._inductor, "config")
    monkeypatch.setitem(sys.modules, "torch._inductor.config", None)
    prepare_compiling()
    prepare_compiling()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: torch's compiler cannot be set up (ModuleNotFoundError")
    assert line.endswith(": scores come more slowly")
    assert (config.freezing, config.compile_threads) == (False, 3)
