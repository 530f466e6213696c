"""`quickstart(config)`: the whole job on the generated sample."""

import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from deepfake_ray import interrupts
from deepfake_ray.config import EvaluateConfig, QuickstartConfig, ScoreConfig, TrainConfig
from deepfake_ray.console import say
from deepfake_ray.drivers import summaries
from deepfake_ray.drivers.evaluate import evaluate
from deepfake_ray.drivers.score import score
from deepfake_ray.drivers.train import train
from deepfake_ray.images import sample
from deepfake_ray.storage import outputs

EPOCHS = 6


def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Generate, train, score, evaluate; returns the summary, whose `output` is the directory that holds it all."""
    folder = Path(config.output, f"quickstart-{datetime.now():%Y%m%d-%H%M%S}").absolute()
    interrupts.advise(lambda: f"{folder} holds a part of the sample and nothing else; remove it, and begin anew")
    folder.mkdir(parents=True)
    data, model = str(folder / "images"), str(folder / "train" / "model")
    say(f"1/4 generating a synthetic sample in {data}")
    sample.generate(data, seed=config.seed)
    say("2/4 training the CNN on it")
    training = TrainConfig(data=data, output=str(folder / "train"), epochs=EPOCHS, seed=config.seed)
    _advise("train", training, "data", "output", "epochs", "seed")
    trained = train(training)
    say("3/4 scoring the test images, as if their labels were not known")
    test = str(folder / "images" / "Test")
    scoring = ScoreConfig(images=(test,), model=model, output=str(folder / "score"), seed=config.seed)
    _advise("score", scoring, "images", "model", "output", "seed")
    scored = score(scoring)
    say("4/4 evaluating on the test split")
    evaluation = EvaluateConfig(data=data, model=model, output=str(folder / "evaluation"), seed=config.seed)
    _advise("evaluate", evaluation, "data", "model", "output", "seed")
    evaluated = evaluate(evaluation)
    say("The sample is synthetic: these figures say that the program works, not how well it finds deepfakes.")
    return {
        "output": str(folder),
        "train": summaries.summarise_bundle(trained, training.output),
        "score": scored,
        "evaluation": evaluated,
    }


def _advise(job: str, config: Any, *flags: str) -> None:
    """Tell how a step is gone on with, should it be interrupted."""

    def advice() -> str:
        if outputs.is_finished(config.output):
            return f"{Path(config.output).parent} holds what was done, {Path(config.output).name}/ included"
        words = ["python", f"jobs/{job}.py"]
        for flag in flags:
            value = getattr(config, flag)
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
        return f"{Path(config.output).parent} holds what was done; `{shlex.join([*words, '--resume'])}` goes on there"

    interrupts.advise(advice)
