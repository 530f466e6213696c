"""Evaluate a bundle on labelled images: python jobs/evaluate.py --data FOLDER --model BUNDLE --output FOLDER"""

import sys

from deepfake_ray.config import EvaluateConfig
from deepfake_ray.drivers import cli

if __name__ == "__main__":
    sys.exit(cli.main(EvaluateConfig, "deepfake_ray.drivers.evaluate:evaluate"))
