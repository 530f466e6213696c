"""Score images with a bundle: python jobs/score.py --images FOLDER --model BUNDLE --output FOLDER"""

import sys

from deepfake_ray import cli
from deepfake_ray.config import ScoreConfig

if __name__ == "__main__":
    sys.exit(cli.main(ScoreConfig, "deepfake_ray.drivers.score:score"))
