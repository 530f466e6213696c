"""The jobs' configurations, and what importing modules brings along."""

import subprocess
import sys

from checkout import ROOT

from deepfake_ray.config import EvaluateConfig, QuantizeConfig, QuickstartConfig, ScoreConfig, TrainConfig

CONFIGS = {
    "train": TrainConfig,
    "score": ScoreConfig,
    "evaluate": EvaluateConfig,
    "quantize": QuantizeConfig,
    "quickstart": QuickstartConfig,
}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout


def loading(modules, unwanted):
    """The first of the modules, imported one after the other, with which one of the unwanted is loaded."""
    return python(
        "import sys, importlib\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(f'deepfake_ray.{name}')\n"
        f"    if set({unwanted}) & set(sys.modules):\n"
        "        print(name)\n"
        "        break\n"
    ).strip()
