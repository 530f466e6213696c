"""`quickstart(config)`: the whole job on the generated sample."""

from datetime import datetime
from pathlib import Path

from deepfake_ray import sample
from deepfake_ray.config import EvaluateConfig, QuickstartConfig, ScoreConfig, TrainConfig
from deepfake_ray.evaluation import evaluate
from deepfake_ray.progress import say
from deepfake_ray.scoring import score
from deepfake_ray.training import train

EPOCHS = 6


def quickstart(config: QuickstartConfig) -> Path:
    """Generate, train, score, evaluate; returns the directory that holds it all."""
    folder = Path(config.output, f"quickstart-{datetime.now():%Y%m%d-%H%M%S}").absolute()
    folder.mkdir(parents=True)
    data, model = str(folder / "images"), str(folder / "train" / "model")
    say(f"1/4 generating a synthetic sample in {data}")
    sample.generate(data, seed=config.seed)
    say("2/4 training the CNN on it")
    train(TrainConfig(data=data, output=str(folder / "train"), epochs=EPOCHS, seed=config.seed))
    say("3/4 scoring the test images, as if their labels were not known")
    score(
        ScoreConfig(
            images=(str(folder / "images" / "Test"),), model=model, output=str(folder / "score"), seed=config.seed
        )
    )
    say("4/4 evaluating on the test split")
    evaluate(EvaluateConfig(data=data, model=model, output=str(folder / "evaluation"), seed=config.seed))
    say("The sample is synthetic: these figures say that the program works, not how well it finds deepfakes.")
    return folder
