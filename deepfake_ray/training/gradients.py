"""The gradients of one training step on one rank, however it is cut into pieces. Pure torch: knows no Ray."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def backward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    share: float,
    micro_batch_size: int | None,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    autocast: AbstractContextManager[object],
) -> tuple[Tensor, Tensor]:
    """Add the gradients of `share` times the mean loss of some images to the model's.

    Args:
        model: images -> outputs (B, 2); where DDP wraps it, the last piece exchanges what all pieces added up to.
        images: uint8 (B, S, S, 3). A batch of none, as none could be read, still takes part in DDP's exchange.
        labels: int64 (B,).
        share: of these images in the step, see `Sampler.share`.
        micro_batch_size: images that are computed with at a time; None: all.
        loss_of: outputs and labels -> the sum of the images' losses.
        autocast: the precision of the forward pass; entered once for each piece.

    Returns:
        The sum of the images' losses, and how many images were told right: both ().
    """
    step_loss = torch.zeros((), device=images.device)
    num_correct = torch.zeros((), device=images.device)
    num_images = len(labels)
    scale = share / num_images if num_images else 0.0
    if not num_images:
        images, labels = images.new_zeros((2, *images.shape[1:])), labels.new_zeros(2)
    pieces = -(-len(labels) // (micro_batch_size or len(labels)))
    for piece, (x, y) in enumerate(zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True)):
        copies = 2 if len(y) == 1 else 1  # batch norm needs two values a channel
        y = y.repeat(copies)
        with _without_exchange(model) if piece + 1 < pieces else nullcontext():
            with autocast:
                outputs = model(x.repeat(copies, 1, 1, 1))
            loss = loss_of(outputs, y) / copies
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        if num_images:
            step_loss += loss.detach()
            num_correct += (outputs.detach().argmax(1) == y).sum() / copies
    return step_loss, num_correct


def _without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """DDP adds up gradients on each rank, and exchanges them with the last piece of a batch."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()
