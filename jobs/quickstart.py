"""The whole job on a generated sample: python jobs/quickstart.py"""

from deepfake_ray.starting import start

if __name__ == "__main__":
    start("quickstart")
