"""Fine-tune a detector on labelled images: python jobs/train.py --data FOLDER --output FOLDER"""

from deepfake_ray.starting import start

if __name__ == "__main__":
    start("train")
