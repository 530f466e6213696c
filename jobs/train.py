"""Fine-tune a detector on labelled images: python jobs/train.py --data FOLDER --output FOLDER"""

import sys

from deepfake_ray import cli
from deepfake_ray.config import TrainConfig

if __name__ == "__main__":
    sys.exit(cli.main(TrainConfig, "deepfake_ray.cross_source:train_or_cross"))
