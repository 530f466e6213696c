"""A bundle in 8-bit integers: python jobs/quantize.py --data FOLDER --model BUNDLE --output FOLDER"""

import sys

from deepfake_ray.config import QuantizeConfig
from deepfake_ray.drivers import cli

if __name__ == "__main__":
    sys.exit(cli.main(QuantizeConfig, "deepfake_ray.drivers.quantize:quantize_to_summary"))
