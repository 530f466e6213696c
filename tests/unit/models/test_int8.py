"""Networks in 8-bit integers, against themselves in floating point."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_networks import network_with_statistics

from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models import bundle
from deepfake_ray.models.inference import Predictor, evaluated
from deepfake_ray.models.int8 import calibrate, quantized
from deepfake_ray.models.spec import Spec

pytestmark = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with VNNI")


@pytest.fixture
def pixels():
    """Pictures that differ: noise around colours."""
    rng = np.random.default_rng(0)
    colours = rng.integers(30, 226, (64, 1, 1, 3))
    return np.clip(colours + rng.normal(0, 30, (64, 48, 48, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(params=["cnn", "resnet18"])
def saved(request, tmp_path):
    network = network_with_statistics(request.param, positive=True)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as training leaves them, else little is left of eight bits
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    spec = Spec(arch=request.param, preparation=Preparation(image_size=48), temperature=1.0, thresholds={})
    arrays = {key: value.numpy() for key, value in network.state_dict().items()}
    place = str(tmp_path / "model")
    return place, bundle.save(place, spec, arrays), arrays


def scales_of(place, pixels):
    _, detector = evaluated(place)
    return calibrate(detector.network, [detector.normalized(torch.from_numpy(pixels))])


def test_logits_are_nearly_those_in_floating_point(saved, pixels, tmp_path):
    place, spec, arrays = saved
    scales = scales_of(place, pixels[:48])
    quantised = bundle.save(str(tmp_path / "int8"), replace(spec, scales=scales), arrays)
    before, after = Predictor(place, precision="fp32"), Predictor(str(tmp_path / "int8"))
    expected, found = before.logits(pixels), after.logits(pixels)  # of images with and without a part in the scales
    error = np.abs(found - expected).mean() / expected.std()
    assert 0 < error < 0.25
    assert np.corrcoef(found, expected)[0, 1] > 0.97
    assert quantised.model_id != spec.model_id
    loaded = bundle.load_spec(str(tmp_path / "int8"))
    assert loaded == quantised
    assert after.logits(pixels[5:6]) == pytest.approx(found[5:6], abs=1e-3 * float(expected.std()))


def test_all_but_the_first_and_the_last_layer_compute_in_integers(saved, pixels):
    place, _, _ = saved
    scales = scales_of(place, pixels)
    _, detector = evaluated(place)
    floating = [m for m in detector.network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    network = quantized(detector.network, scales, 48)
    left = [m for m in network.modules() if type(m) in (torch.nn.Conv2d, torch.nn.Linear)]
    integer = [m for m in network.modules() if "quantized" in type(m).__module__ and hasattr(m, "weight")]
    assert len(left) == 2
    assert len(integer) == len(floating) - 2
    assert {m.weight().dtype for m in integer} == {torch.qint8}


def test_scales_are_named_by_the_paths_of_modules(saved, pixels):
    """Not by how a version of torch counts what it traces, under which a bundle could not be read by the next."""
    place, spec, _ = saved
    scales = scales_of(place, pixels)
    assert not any("activation_post_process" in name for name in scales)
    network = evaluated(place)[1].network
    modules = dict(network.named_modules())
    assert all(name.partition("#")[0].partition(":")[0] in modules for name in scales)
    if spec.arch == "resnet18":
        assert {"conv1", "layer1.0.conv1", "layer1.0.relu", "avgpool", ":flatten"} <= set(scales)


def test_scales_by_the_names_of_before_are_read(saved, pixels):
    place, _, _ = saved
    scales = scales_of(place, pixels)
    before = {f"activation_post_process_{i}": scale for i, scale in enumerate(scales.values())}
    size = pixels.shape[1]
    x = torch.from_numpy(pixels[:4]).permute(0, 3, 1, 2).float() / 255
    now, then = (quantized(evaluated(place)[1].network, one, size)(x) for one in (scales, before))
    assert torch.equal(now, then)


def test_scales_of_another_network_are_refused(saved, pixels):
    place, _, _ = saved
    scales = scales_of(place, pixels)
    _, detector = evaluated(place)
    with pytest.raises(ValueError, match="activations.*quantise again"):
        quantized(detector.network, dict(list(scales.items())[1:]), 48)


def test_what_cannot_be_traced_is_said():
    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.layer(x) if x.mean() > 0 else x

    with pytest.raises(ValueError, match="cannot be traced"):
        calibrate(Branches().eval(), [torch.zeros(1, 3, 48, 48)])
