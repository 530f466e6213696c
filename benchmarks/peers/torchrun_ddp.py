"""Training as torch's tutorials have it: DistributedDataParallel, ImageFolder, DataLoader, torchvision's transforms.

torchrun --nproc-per-node 2 benchmarks/peers/torchrun_ddp.py --data FOLDER --arch cnn --image-size 32
"""

import os
import tempfile
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from training import LEARNING_RATE, arguments, images, network, say

from deepfake_ray.models.networks import autocast


def loader_of(options, split, batch_size):
    found = images(options, split)
    sampler = DistributedSampler(found, shuffle=split == "Train", seed=0)
    workers = options.loader_workers
    return DataLoader(found, batch_size, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def main():
    options = arguments(__doc__)
    dist.init_process_group("gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    torch.set_num_threads(max(1, os.cpu_count() // world))
    batch_size = options.global_batch_size // world
    train, validation = loader_of(options, "Train", batch_size), loader_of(options, "Validation", batch_size)
    folder = tempfile.TemporaryDirectory()
    model = DistributedDataParallel(network(options))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    precision = autocast(torch.device("cpu"), "auto")
    for epoch in range(options.epochs):
        started = time.monotonic()
        model.train()
        train.sampler.set_epoch(epoch)
        total = torch.zeros(1)
        for x, labels in train:
            with precision:
                outputs = model(x.contiguous(memory_format=torch.channels_last))
            nn.functional.cross_entropy(outputs.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            total += len(labels)
        model.eval()
        correct = torch.zeros(1)
        with torch.inference_mode(), precision:
            for x, labels in validation:
                outputs = model.module(x.contiguous(memory_format=torch.channels_last))
                correct += (outputs.argmax(1) == labels).sum()
                total += len(labels)
        dist.all_reduce(total)
        dist.all_reduce(correct)
        if rank == 0:
            state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            torch.save(state, f"{folder.name}/checkpoint.pt")
            say(epoch + 1, time.monotonic() - started, total.item())
    folder.cleanup()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
