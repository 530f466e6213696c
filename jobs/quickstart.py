"""The whole job on a generated sample: python jobs/quickstart.py"""

import sys

from deepfake_ray.config import QuickstartConfig
from deepfake_ray.drivers import cli

if __name__ == "__main__":
    sys.exit(cli.main(QuickstartConfig, "deepfake_ray.drivers.quickstart:quickstart"))
