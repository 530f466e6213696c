"""Score images with a bundle: python jobs/score.py --images FOLDER --model BUNDLE --output FOLDER"""

from deepfake_ray.starting import start

if __name__ == "__main__":
    start("score")
