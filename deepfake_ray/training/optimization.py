"""What training minimises, and with which optimiser and learning rate. Pure torch: knows no Ray."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepfake_ray.models.networks import head_keys


def balanced_weights(num_images: Sequence[int]) -> tuple[float, ...]:
    """Weights of the classes that make each count the same in the loss: N / (classes * N of the class)."""
    return tuple(sum(num_images) / (len(num_images) * number) for number in num_images)


def loss_sum(outputs: Tensor, labels: Tensor, class_weights: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy (B, 2), (B,) -> (), each image times the weight of its class, summed over images."""
    return F.cross_entropy(
        outputs.float(), labels, weight=class_weights, label_smoothing=label_smoothing, reduction="sum"
    )


def make_optimizer(
    network: nn.Module, arch: str, recipe: str, *, learning_rate: float, lr_backbone: float | None, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam for the baseline, else AdamW; the head (the layer that depends on the number of classes) first."""
    heads = head_keys(arch)
    parameters = list(network.named_parameters())
    head: dict[str, Any] = {"params": [parameter for name, parameter in parameters if name in heads]}
    backbone: dict[str, Any] = {"params": [parameter for name, parameter in parameters if name not in heads]}
    optimizer = torch.optim.Adam if recipe == "baseline" else torch.optim.AdamW
    return optimizer(
        [head, {**backbone, "lr": lr_backbone or learning_rate}],
        lr=learning_rate,
        weight_decay=weight_decay,
        fused=True,
    )


def train_head_alone(network: nn.Module, arch: str, alone: bool) -> None:
    """Whether gradients are computed for the head only."""
    heads = head_keys(arch)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not alone or name in heads)


def keep_statistics(network: nn.Module) -> None:
    """Batch norms use their running statistics and leave them as they are: those of a frozen backbone."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def cosine_schedule(num_steps: int, warmup_share: float) -> Callable[[int], float]:
    """Step -> factor of the learning rate: linear warm-up to 1, then a cosine to 0 (Loshchilov and Hutter 2016,
    arXiv 1608.03983).
    """
    warmup = round(warmup_share * num_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))

    return factor
