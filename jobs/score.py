"""Score images with a bundle: python jobs/score.py --images FOLDER --model BUNDLE --output FOLDER"""

import sys

from deepfake_ray.config import ScoreConfig
from deepfake_ray.drivers import cli

if __name__ == "__main__":
    sys.exit(cli.main(ScoreConfig, "deepfake_ray.drivers.score:score"))
