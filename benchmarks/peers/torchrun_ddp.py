"""The peer in training: torch's own tutorial way. torchrun starts it: DistributedDataParallel, ImageFolder, DataLoader,
torchvision's transforms, the same recipe as `--recipe baseline`. Prints a line of JSON an epoch.

    torchrun --nproc-per-node 2 benchmarks/peers/torchrun_ddp.py --data FOLDER --arch cnn --image-size 32
"""

import argparse
import json
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets
from torchvision.transforms import v2

from deepfake_ray import models
from deepfake_ray.weights import initial_state


def loader_of(folder, transform, batch_size, num_workers, shuffle):
    images = datasets.ImageFolder(folder, transform)
    sampler = DistributedSampler(images, shuffle=shuffle, seed=0)
    return DataLoader(images, batch_size, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--global-batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--loader-workers", type=int, default=1)
    options = parser.parse_args()

    dist.init_process_group("gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    torch.set_num_threads(max(1, os.cpu_count() // world))
    size = (options.image_size, options.image_size)
    end = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    flip_and_turn = [v2.RandomHorizontalFlip(), v2.RandomApply([v2.RandomRotation(10)], p=0.5)]
    batch_size = options.global_batch_size // world
    train = loader_of(
        f"{options.data}/Train", v2.Compose([v2.Resize(size), *flip_and_turn, *end]), batch_size,
        options.loader_workers, True,
    )  # fmt: skip
    validation = loader_of(
        f"{options.data}/Validation", v2.Compose([v2.Resize(size), *end]), batch_size, options.loader_workers, False
    )
    network = models.build(options.arch)
    network.load_state_dict(initial_state(options.arch, options.weights, 0))
    model = DistributedDataParallel(network.to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    autocast = models.autocast(torch.device("cpu"), "auto")
    for epoch in range(options.epochs):
        started = time.monotonic()
        model.train()
        train.sampler.set_epoch(epoch)
        num_images = 0
        for images, labels in train:
            with autocast:
                outputs = model(images.contiguous(memory_format=torch.channels_last))
            nn.functional.cross_entropy(outputs.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            num_images += len(labels)
        model.eval()
        correct = torch.zeros(1)
        with torch.inference_mode(), autocast:
            for images, labels in validation:
                outputs = model.module(images.contiguous(memory_format=torch.channels_last))
                correct += (outputs.argmax(1) == labels).sum()
                num_images += len(labels)
        total = torch.tensor([float(num_images), correct.item()])
        dist.all_reduce(total)
        if rank == 0:
            seconds = time.monotonic() - started
            print(
                json.dumps({"epoch": epoch + 1, "epoch_s": seconds, "images_per_s": total[0].item() / seconds}),
                flush=True,
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
