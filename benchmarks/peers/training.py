"""What the training peers share: their arguments, images and network, and a line of JSON an epoch."""

import argparse
import json

import torch
from torchvision import datasets
from torchvision.transforms import v2

from deepfake_ray.models import networks
from deepfake_ray.models.initial_weights import initial_state

LEARNING_RATE = 1e-3


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--global-batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="that compute")
    parser.add_argument("--loader-workers", type=int, default=1, help="of each of them")
    return parser.parse_args()


def images(options, split):
    """An ImageFolder, with the augmentation of `--recipe baseline` for training."""
    resize = v2.Resize((options.image_size, options.image_size))
    augment = [v2.RandomHorizontalFlip(), v2.RandomApply([v2.RandomRotation(10)], p=0.5)] if split == "Train" else []
    normalize = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = v2.Compose([resize, *augment, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize])
    return datasets.ImageFolder(f"{options.data}/{split}", transform)


def network(options):
    found = networks.build(options.arch)
    found.load_state_dict(initial_state(options.arch, options.weights, 0))
    return found.to(memory_format=torch.channels_last)


def say(epoch, seconds, num_images):
    print(json.dumps({"epoch": epoch, "epoch_s": seconds, "images_per_s": num_images / seconds}), flush=True)
