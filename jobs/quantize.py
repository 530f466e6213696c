"""A bundle in 8-bit integers: python jobs/quantize.py --data FOLDER --model BUNDLE --output FOLDER"""

from deepfake_ray.starting import start

if __name__ == "__main__":
    start("quantize")
