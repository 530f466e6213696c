"""Fine-tune a detector on labelled images: python jobs/train.py --data FOLDER --output FOLDER"""

import sys

from deepfake_ray.config import TrainConfig
from deepfake_ray.drivers import cli

if __name__ == "__main__":
    sys.exit(cli.main(TrainConfig, "deepfake_ray.drivers.leave_one_source_out:train_or_cross"))
