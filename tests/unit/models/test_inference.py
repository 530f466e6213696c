"""A bundle on a device, against its network called by hand."""

import shutil

import numpy as np
import pytest
import torch
from random_networks import network_with_statistics
from torch import nn
from torch.fx.experimental.optimization import fuse

from deepfake_ray.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preparation
from deepfake_ray.models import bundle, networks
from deepfake_ray.models.inference import Predictor, _MaxOfPairs
from deepfake_ray.models.spec import Spec


@pytest.mark.parametrize(
    ("arch", "positive", "compiled"),
    [
        ("cnn", False, False),  # whose pooling comes before its batch norms
        ("cnn", True, False),
        ("resnet18", False, False),
        ("mobilenet_v3_small", False, False),
        pytest.param(
            "cnn", True, True, marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
        ),
    ],
)
def test_logits_are_those_of_the_network(arch, positive, compiled, tmp_path):
    network = network_with_statistics(arch, positive=positive)
    spec = Spec(arch=arch, preparation=Preparation(image_size=48), temperature=1.0, thresholds={})
    bundle.save(str(tmp_path / "model"), spec, {key: value.numpy() for key, value in network.state_dict().items()})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.inference_mode():
        outputs = network(x)
    expected = (outputs[:, 1] - outputs[:, 0]).numpy()
    predictor = Predictor(str(tmp_path / "model"), precision="fp32", compiled_for=5 if compiled else None)
    assert predictor.logits(pixels) == pytest.approx(expected, rel=1e-4, abs=1e-5 * float(np.abs(expected).max()))
    if not compiled:
        folded = not any(isinstance(module, nn.BatchNorm2d) for module in predictor._detector.modules())
        assert folded == (arch != "cnn" or positive)


def test_pooling_of_an_odd_size_leaves_out_the_last_row_and_column():
    """36 px are 9 before the third pooling."""
    x = torch.arange(2 * 9 * 7, dtype=torch.float32).sin().view(1, 2, 9, 7)
    assert torch.equal(_MaxOfPairs()(x), nn.functional.max_pool2d(x, 2))


def test_bf16_scores_are_those_of_autocast_to_the_bit(tmp_path):
    network = network_with_statistics("resnet18")
    spec = Spec(arch="resnet18", preparation=Preparation(image_size=48), temperature=1.0, thresholds={})
    bundle.save(str(tmp_path / "model"), spec, {key: value.numpy() for key, value in network.state_dict().items()})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    x = (x - 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / (255 * torch.tensor(IMAGENET_STD).view(3, 1, 1))
    by_hand = networks.keep_head_in_fp32(fuse(network), "resnet18").to(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        outputs = by_hand(x).float()
    predictor = Predictor(str(tmp_path / "model"), precision="bf16")
    assert np.array_equal(predictor.logits(pixels), (outputs[:, 1] - outputs[:, 0]).numpy())
    convolutions = [module for module in predictor._detector.modules() if isinstance(module, nn.Conv2d)]
    assert {module.weight.dtype for module in convolutions} == {torch.bfloat16}
