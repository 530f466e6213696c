"""The limit of training: two processes' steps on one batch that is in memory, with DistributedDataParallel; no image is
read, decoded or augmented, and no validation made. An "epoch" is a fifth of the training images.

    torchrun --nproc-per-node 2 benchmarks/peers/limit_ddp.py --data FOLDER --arch cnn --image-size 32
"""

import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import LEARNING_RATE, arguments, images, network, say

from deepfake_ray.models.networks import autocast
from deepfake_ray.processes.allocator import keep_freed_memory


def main():
    options = arguments(__doc__)
    keep_freed_memory()
    dist.init_process_group("gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    torch.set_num_threads(max(1, os.cpu_count() // world))
    batch_size = options.global_batch_size // world
    model = DistributedDataParallel(network(options)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    precision = autocast(torch.device("cpu"), "auto")
    x = torch.randn(batch_size, 3, options.image_size, options.image_size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (batch_size,))
    steps = max(2, len(images(options, "Train")) // options.global_batch_size // 5)
    for epoch in range(options.epochs):
        started = time.monotonic()
        for _ in range(steps):
            with precision:
                outputs = model(x)
            nn.functional.cross_entropy(outputs.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        if rank == 0:
            say(epoch + 1, time.monotonic() - started, steps * options.global_batch_size)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
