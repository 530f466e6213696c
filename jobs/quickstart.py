"""The whole job on a generated sample: python jobs/quickstart.py"""

import sys

from deepfake_ray import cli
from deepfake_ray.config import QuickstartConfig

if __name__ == "__main__":
    sys.exit(cli.main(QuickstartConfig, "deepfake_ray.quickstart:quickstart"))
