"""A bundle in 8-bit integers: python jobs/quantize.py --data FOLDER --model BUNDLE --output FOLDER"""

import sys

from deepfake_ray import cli
from deepfake_ray.config import QuantizeConfig

if __name__ == "__main__":
    sys.exit(cli.main(QuantizeConfig, "deepfake_ray.quantizing:quantize_to_summary"))
