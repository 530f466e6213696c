"""A step does not depend on how it is cut: into ranks, into pieces, and around images that cannot be read."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deepfake_ray.training.gradients import backward
from deepfake_ray.training.optimization import loss_sum
from deepfake_ray.training.sampler import Sampler

CLASS_WEIGHTS = torch.tensor([0.8, 1.5], dtype=torch.float64)
SMOOTHING = 0.1


class Net(nn.Module):
    """Without batch norm, which does depend on the pieces; in float64, so that only a wrong sum can differ."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 2 * 2, 2)).double()

    def forward(self, images):
        return self.layers(images.permute(0, 3, 1, 2).double() / 255)


def loss_of(outputs, labels):
    """`loss_sum`, in float64."""
    return F.cross_entropy(outputs, labels, weight=CLASS_WEIGHTS, label_smoothing=SMOOTHING, reduction="sum")


def gradients(network):
    return [parameter.grad.clone() for parameter in network.parameters()]


@given(
    batch_size=st.integers(2, 13),
    world=st.integers(1, 5),
    micro_batch_size=st.none() | st.integers(1, 14),
    unreadable=st.sets(st.integers(0, 12)),
)
def test_the_gradients_of_all_ranks_are_those_of_the_step(batch_size, world, micro_batch_size, unreadable):
    world = min(world, batch_size)
    random = torch.Generator().manual_seed(batch_size)
    images = torch.randint(0, 256, (batch_size, 4, 4, 3), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 2, (batch_size,), generator=random)

    # By definition: of each rank the mean over what it could read, weighted by its part of the batch.
    network, weights, readable, start = Net(), torch.zeros(batch_size, dtype=torch.float64), [], 0
    shards = []
    for rank in range(world):
        stop = (rank + 1) * batch_size // world
        shard = [row for row in range(start, stop) if row not in unreadable]
        shards.append(shard)
        readable.extend(shard)
        if shard:
            weights[shard] = (stop - start) / batch_size / len(shard)
        start = stop
    outputs = network(images)
    losses = F.cross_entropy(outputs, labels, weight=CLASS_WEIGHTS, label_smoothing=SMOOTHING, reduction="none")
    (losses * weights).sum().backward()
    expected, expected_loss = gradients(network), losses[readable].sum().item()
    expected_correct = (outputs.argmax(1) == labels)[readable].sum().item()
    if not unreadable & set(range(batch_size)):
        assert torch.allclose(weights, torch.full_like(weights, 1 / batch_size))  # the mean of the step

    found, loss, num_correct = [torch.zeros_like(gradient) for gradient in expected], 0.0, 0.0
    for rank, shard in enumerate(shards):
        sampler = Sampler(
            num_train=100, num_validation=1, global_batch_size=batch_size, world_size=world, rank=rank, seed=0
        )
        network = Net()
        rank_loss, rank_correct = backward(
            network,
            images[shard],
            labels[shard],
            share=sampler.share,
            micro_batch_size=micro_batch_size,
            loss_of=loss_of,
            autocast=nullcontext(),
        )
        for total, gradient in zip(found, gradients(network), strict=True):
            total += gradient / world  # what DDP does
        loss += rank_loss.item()
        num_correct += rank_correct.item()
    for total, gradient in zip(found, expected, strict=True):
        assert torch.allclose(total, gradient, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(expected_loss, rel=1e-6)  # summed in float32
    assert num_correct == expected_correct


def test_the_loss_is_weighted_and_smoothed_as_configured():
    outputs, labels = torch.tensor([[1.0, -2.0], [0.5, 0.25]]), torch.tensor([1, 0])
    expected = 0.0
    for logits, label in zip(outputs.double().tolist(), labels.tolist(), strict=True):
        log_p = torch.log_softmax(torch.tensor(logits), 0).tolist()
        # torch's smoothing spreads the weighted loss of all classes over the row
        expected -= 0.9 * CLASS_WEIGHTS[label].item() * log_p[label]
        expected -= sum(0.05 * CLASS_WEIGHTS[c].item() * log_p[c] for c in (0, 1))
    found = loss_sum(outputs, labels, CLASS_WEIGHTS.float(), SMOOTHING)
    assert found.item() == pytest.approx(expected, rel=1e-6)


class _Counting(nn.parallel.DistributedDataParallel):
    """As DDP, without processes: says when gradients would have been exchanged."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.inner, self.exchanged, self._syncs = module, [], True

    def no_sync(self):
        counting = self

        class Quiet:
            def __enter__(self):
                counting._syncs = False

            def __exit__(self, *_):
                counting._syncs = True

        return Quiet()

    def forward(self, images):
        self.exchanged.append((len(images), self._syncs))
        return self.inner(images)


@pytest.mark.parametrize(
    ("num_images", "micro", "expected"),
    [
        (7, None, [(7, True)]),
        (7, 3, [(3, False), (2, False), (2, True)]),
        (1, 3, [(2, True)]),  # a lone image is computed twice, for batch norm
        (0, 3, [(2, True)]),  # none could be read: this rank takes part in the exchange all the same
    ],
)
def test_gradients_are_exchanged_once_a_step(num_images, micro, expected):
    model = _Counting(Net())
    images, labels = torch.zeros((num_images, 4, 4, 3), dtype=torch.uint8), torch.zeros(num_images, dtype=torch.int64)
    loss, num_correct = backward(
        model, images, labels, share=1.0, micro_batch_size=micro, loss_of=loss_of, autocast=nullcontext()
    )
    assert model.exchanged == expected
    if not num_images:
        assert (loss.item(), num_correct.item()) == (0, 0)
        assert all(parameter.grad.abs().sum() == 0 for parameter in model.inner.parameters())
