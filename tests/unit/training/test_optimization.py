"""Losses, optimisers and schedules, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from deepfake_ray.models import networks
from deepfake_ray.training import optimization


def test_learning_rate_rises_linearly_then_falls_along_a_cosine():
    factor = optimization.cosine_schedule(100, 0.1)
    factors = [factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)  # half way of the remaining 90 steps
    assert factors[99] < 0.001
    assert factors[100] == pytest.approx(0)
    assert optimization.cosine_schedule(100, 0.0)(0) == 1.0


def test_balanced_weights_make_the_classes_count_the_same():
    assert optimization.balanced_weights([300, 100]) == (pytest.approx(2 / 3), pytest.approx(2.0))
    assert optimization.balanced_weights([50, 50]) == (1.0, 1.0)


def test_loss_is_the_weighted_sum_of_cross_entropies():
    outputs, labels = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([0, 1])
    # The first image has probability 1/2 for its class, the second 3/4.
    found = optimization.loss_sum(outputs, labels, torch.tensor([2.0, 0.5]), 0.0)
    assert found.item() == pytest.approx(2 * math.log(2) + 0.5 * math.log(4 / 3))
    smooth = optimization.loss_sum(outputs[1:], labels[1:], torch.tensor([1.0, 1.0]), 0.2)
    assert smooth.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


@pytest.mark.parametrize(("recipe", "expected"), [("baseline", torch.optim.Adam), ("robust", torch.optim.AdamW)])
def test_head_and_backbone_have_rates_of_their_own(recipe, expected):
    network = networks.build("cnn")
    optimizer = optimization.make_optimizer(
        network, "cnn", recipe, learning_rate=0.1, lr_backbone=0.01, weight_decay=0.0
    )
    assert type(optimizer) is expected
    head, backbone = optimizer.param_groups
    assert [p.shape for p in head["params"]] == [(2, 256), (2,)]
    assert (head["lr"], backbone["lr"]) == (0.1, 0.01)
    assert len(head["params"]) + len(backbone["params"]) == len(list(network.parameters()))


def test_a_frozen_backbone_neither_learns_nor_counts():
    torch.manual_seed(0)
    network = networks.build("cnn").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimization.train_head_alone(network, "cnn", True)
    optimization.keep_statistics(network)
    optimizer = optimization.make_optimizer(
        network, "cnn", "robust", learning_rate=0.1, lr_backbone=None, weight_decay=0.1
    )
    nn.functional.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.5.weight", "classifier.5.bias"}
    optimization.train_head_alone(network, "cnn", False)
    assert all(parameter.requires_grad for parameter in network.parameters())
