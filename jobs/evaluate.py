"""Evaluate a bundle on labelled images: python jobs/evaluate.py --data FOLDER --model BUNDLE --output FOLDER"""

from deepfake_ray.starting import start

if __name__ == "__main__":
    start("evaluate")
