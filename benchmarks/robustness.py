"""Models on a Test split as it is, and re-saved, blurred and shrunk: what happens to images on their way.

python benchmarks/robustness.py --data FOLDER --model baseline=RUN/model --model robust=OTHER/model
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image, ImageFilter

from deepfake_ray.config import EvaluateConfig
from deepfake_ray.evaluation import evaluate
from deepfake_ray.session import ray_session


def half(image):
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


DEGRADATIONS = {
    "JPEG 50": (lambda image: image, {"format": "JPEG", "quality": 50}),
    "blur, sigma 1": (lambda image: image.filter(ImageFilter.GaussianBlur(1)), {"format": "PNG"}),
    "half the size": (half, {"format": "PNG"}),
}


def degraded(source, target, change, save):
    for path in sorted(Path(source, "Test").rglob("*.jpg")):
        place = Path(target, path.relative_to(source)).with_suffix(f".{save['format'].lower()}")
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            change(image.convert("RGB")).save(place, **save)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", action="append", required=True, help="NAME=BUNDLE")
    parser.add_argument("--crops", type=int, default=1)
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder, ray_session():
        places = {"as it is": options.data}
        for number, (name, (change, save)) in enumerate(DEGRADATIONS.items()):
            places[name] = f"{folder}/{number}"
            degraded(options.data, places[name], change, save)
        for model in options.model:
            name, bundle = model.split("=", 1)
            for number, (degradation, data) in enumerate(places.items()):
                found = evaluate(
                    EvaluateConfig(
                        data=data,
                        split_by="folder",
                        model=bundle,
                        output=f"{folder}/{name}-{number}",
                        crops=options.crops,
                    )
                )
                accuracy = [found["thresholds"][at]["accuracy"] for at in ("balanced", "default")]
                lines.append((name, degradation, found["roc_auc"], *accuracy))
    print("| model | Test | ROC AUC | accuracy at balanced | accuracy at .5 |\n|---|---|---|---|---|")
    for name, degradation, *figures in lines:
        print(f"| {name} | {degradation} | {' | '.join(f'{figure:.4f}' for figure in figures)} |")


if __name__ == "__main__":
    main()
