import re
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from checkout import ROOT
from commands import CONFIGS, loading

from deepfake_ray.config import EvaluateConfig, QuantizeConfig, ScoreConfig, TrainConfig
from deepfake_ray.drivers import cli
from deepfake_ray.errors import UserError

MINIMAL = {
    TrainConfig: ["--data", "d", "--output", "o"],
    ScoreConfig: ["--images", "i", "--model", "m", "--output", "o"],
    QuantizeConfig: ["--data", "d", "--model", "m", "--output", "o"],
    EvaluateConfig: ["--data", "d", "--model", "m", "--output", "o"],
}


def modules_of(*packages):
    """Dotted, without the project's name."""
    root = ROOT / "deepfake_ray"
    paths = [path.relative_to(root) for package in packages for path in sorted((root / package).rglob("*.py"))]
    names = [".".join(path.with_suffix("").parts) for path in paths if path.name != "__init__.py"]
    assert names
    return names


def test_the_command_line_loads_neither_ray_nor_torch():
    assert loading(["schema", "errors", "config", "drivers.cli"], ["ray", "torch"]) == ""
    assert loading(["config", "cluster.session"], ["ray"]) == "cluster.session"


def test_pure_work_never_loads_ray():
    """What these import themselves is import-linter's to see; here, what comes along when they are imported."""
    modules = modules_of("storage", "processes", "images", "data", "models", "evaluation")
    others = ["interrupts", "drivers.checks", "drivers.resuming", "drivers.summaries", "training.gradients",
              "training.sampler", "scoring.reuse", "scoring.tally", "scoring.worker"]  # fmt: skip
    assert loading([*modules, *others], ["ray"]) == ""


def test_images_and_tables_need_no_torch():
    assert loading(modules_of("storage", "processes", "images", "data"), ["torch"]) == ""


def test_the_drivers_of_scoring_and_evaluation_need_no_torch():
    modules = ["drivers.score", "scoring.worker", "scoring.chunk_files", "drivers.evaluate", "drivers.quantize"]
    assert loading(modules, ["torch"]) == ""


@pytest.mark.parametrize("job", CONFIGS)
def test_help_names_every_flag(job):
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", shown)
    for field in fields(CONFIGS[job]):
        flag = f" --{field.name.replace('_', '-')} "
        assert flag in text
        of_flag = re.split(r" --[a-z][a-z-]+ [A-Z{\[]", text.split(flag, 1)[1])[0]
        if field.default not in (MISSING, (), ""):
            assert f"(default: {field.default})" in of_flag, of_flag


@pytest.mark.parametrize("config", MINIMAL)
def test_minimal_commands(config):
    assert cli.parse(config, MINIMAL[config]).output == "o"


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (TrainConfig, ["--epochs", "0"], "epochs must be greater than 0: got 0"),
        (TrainConfig, ["--warmup-share", "1"], r"warmup-share must be in \[0, 1\)"),
        (TrainConfig, ["--max-error-share", "2"], "max-error-share must be in"),
        (ScoreConfig, ["--threshold", "best"], "threshold must be one of default, balanced"),
        (ScoreConfig, ["--threshold", "1.5"], "threshold must be one of"),
        (ScoreConfig, ["--batch-size", "0"], "batch-size must be greater than 0"),
        (EvaluateConfig, ["--limit", "-1"], "limit must be greater than 0"),
        (EvaluateConfig, ["--output", ""], "output must name a directory"),
        (EvaluateConfig, ["--data", ""], "data must name labelled images"),
        (EvaluateConfig, ["--degrade", "-1"], "degrade must not be negative"),
        (EvaluateConfig, ["--predictions", "p", "--data", ""], "predictions need labels"),
        (EvaluateConfig, ["--predictions", "p", "--limit", "9"], "predictions are evaluated whole"),
    ],
)
def test_values_that_break_a_rule(config, flags, message):
    with pytest.raises(UserError, match=message):
        cli.parse(config, [*MINIMAL[config], *flags])


def test_mistakes_exit_with_2_and_one_line(capfd):
    assert cli.main(TrainConfig, "unused:unused", [*MINIMAL[TrainConfig], "--epochs", "0"]) == 2
    shown = capfd.readouterr().err
    assert shown.startswith("error: epochs must be greater than 0")
    assert len(shown.strip().splitlines()) == 1
    with pytest.raises(SystemExit) as caught:
        cli.main(TrainConfig, "unused:unused", [*MINIMAL[TrainConfig], "--epoch", "1"])
    assert caught.value.code == 2
