"""Networks with random weights."""

import torch
from torch import nn

from deepfake_ray.models import networks


def network_with_statistics(arch, *, positive=False):
    """Random weights, and batch norms that do something."""
    torch.manual_seed(0)
    network = networks.build(arch)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight)  # of both signs
            if positive:
                module.weight.data.abs_()
            nn.init.normal_(module.bias)
    return network.eval()
