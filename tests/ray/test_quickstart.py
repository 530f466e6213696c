"""What the quickstart says when it is interrupted, and gives back."""

import re
import shlex

import pytest
from commands import CONFIGS

from deepfake_ray import interrupts
from deepfake_ray.config import QuickstartConfig
from deepfake_ray.drivers import cli, quickstart
from deepfake_ray.models import bundle


@pytest.fixture
def advices(monkeypatch, untrained):
    """What an interruption would say: in each step, by its name."""
    found, advice = {}, [None]
    monkeypatch.setattr(interrupts, "advise", lambda says: advice.__setitem__(0, says))
    results = {"train": bundle.load_spec(untrained), "score": {"num_ok": 1}, "evaluate": {"roc_auc": 1.0}}

    def step(name, result):
        def run(*_, **__):
            found[name] = advice[0]()
            return result

        return run

    monkeypatch.setattr(quickstart.sample, "generate", step("generate", None))
    for name, result in results.items():
        monkeypatch.setattr(quickstart, name, step(name, result))
    return found


def test_every_step_names_the_command_that_goes_on_with_it(advices, tmp_path):
    summary = quickstart.quickstart(QuickstartConfig(output=str(tmp_path / "my runs"), seed=3))
    folder = summary["output"]
    assert advices.pop("generate") == f"{folder} holds a part of the sample and nothing else; remove it, and begin anew"
    for job, advice in advices.items():
        assert advice.startswith(f"{folder} holds what was done; ")
        python, script, *flags = shlex.split(re.search("`(.*)`", advice)[1])
        assert (python, script) == ("python", f"jobs/{job}.py")
        config = cli.parse(CONFIGS[job], flags)
        assert config.resume
        assert config.output.startswith(folder)
        assert config.seed == 3
    assert set(advices) == {"train", "score", "evaluate"}
    assert {name: summary[name] for name in ("score", "evaluation")} == {
        "score": {"num_ok": 1},
        "evaluation": {"roc_auc": 1.0},
    }
    assert summary["train"]["model"] == f"{folder}/train/model"
