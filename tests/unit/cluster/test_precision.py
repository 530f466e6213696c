"""In which precision a run computes, and that the last layer always does so in fp32."""

import numpy as np
import pytest
import torch
from torch import nn

from deepfake_ray.cluster import precision
from deepfake_ray.errors import UserError
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models import bundle, hardware, networks
from deepfake_ray.models.inference import Predictor
from deepfake_ray.models.int8 import require_vnni
from deepfake_ray.models.spec import Spec


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(precision, "is_alone", lambda: True)


@pytest.mark.parametrize(
    ("flags", "bf16", "vnni"),
    [
        ("fpu avx512f avx512_bf16 avx512_vnni", True, True),
        ("fpu avx2 avx_vnni", False, True),
        ("fpu amx_bf16 amx_tile", True, False),
        ("fpu avx512f avx512_bf16x avx512bf16", False, False),
    ],
)
def test_flags_of_the_cpu_decide(flags, bf16, vnni, monkeypatch, alone):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags.split()))
    assert (hardware.cpu_computes_bf16(), hardware.has_vnni()) == (bf16, vnni)
    assert precision.resolve("auto", use_gpu=False) == ("bf16" if bf16 else "fp32")
    assert precision.resolve("bf16", use_gpu=False) == "bf16"
    assert precision.resolve("auto", use_gpu=False, quantized=True) == "int8"
    if vnni:
        require_vnni()
    else:
        with pytest.raises(UserError, match="needs CPUs with VNNI"):
            require_vnni()


def test_a_feature_that_one_core_lacks_does_not_count(monkeypatch):
    text = "processor: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor: 1\nflags\t\t: fpu\n"
    monkeypatch.setattr("builtins.open", lambda *_: __import__("io").StringIO(text))
    assert hardware.cpu_flags() == {"fpu"}


def test_the_probe_agrees_with_torch():
    assert hardware.cpu_computes_bf16() == bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    assert hardware.has_vnni() == torch.cpu._is_vnni_supported()


@pytest.mark.parametrize(("said", "native"), [("9.0\n9.0\n", True), ("8.0\n7.5\n", False), ("", False), ("x\n", False)])
def test_capabilities_of_the_gpus_decide(said, native, monkeypatch, alone):
    class Done:
        stdout = said

    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: Done)
    assert precision.resolve("auto", use_gpu=True) == ("bf16" if native else "fp32")


@pytest.mark.ray
def test_each_node_is_asked(ray_2_cpus):
    assert not precision.is_alone()
    native = hardware.cpu_computes_bf16()
    assert precision.resolve("auto", use_gpu=False) == ("bf16" if native else "fp32")
    assert precision.resolve("auto", use_gpu=True) == "fp32", "no node has a GPU"


def heads(network, arch):
    return [network.get_submodule(key.rpartition(".")[0]) for key in networks.head_keys(arch) if key.endswith("weight")]


FAMILIES = (
    "cnn", "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t",
    "vgg11", "vit_b_16",
)  # fmt: skip


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_has_its_head_in_fp32(arch):
    """The keys of the weights stay, which a bundle has as torchvision does."""
    network = networks._shapes_of(arch)
    before = list(network.state_dict())
    networks.keep_head_in_fp32(network, arch)
    assert list(network.state_dict()) == before
    assert heads(network, arch)
    assert all(isinstance(head, networks._InFp32) for head in heads(network, arch))


@pytest.mark.parametrize("arch", ["cnn", "resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_distinct_images_get_distinct_logits_in_bf16(arch, tmp_path):
    """In bf16 a thousand images had 704 logits: the two outputs have 8 bits each."""
    torch.manual_seed(0)
    network = networks.build(arch)
    for head in heads(network, arch):
        nn.init.normal_(head.weight, std=0.1)
    spec = Spec(arch=arch, preparation=Preparation(image_size=32), temperature=1.0, thresholds={}, precision="bf16")
    bundle.save(str(tmp_path), spec, {key: value.numpy() for key, value in network.state_dict().items()})
    random = np.random.default_rng(0)
    colours = random.integers(30, 226, (200, 1, 1, 3))
    images = np.clip(colours + random.normal(0, 40, (200, 32, 32, 3)), 0, 255).astype(np.uint8)
    predictor = Predictor(str(tmp_path))
    logits = predictor.logits(images)
    assert len(np.unique(logits)) >= 198
    # Every layer before it was in bf16, as was asked.
    assert np.abs(logits - Predictor(str(tmp_path), precision="fp32").logits(images)).max() > 0
    assert {head.weight.dtype for head in heads(predictor._detector.network, arch)} == {torch.float32}


def test_the_head_learns_in_fp32():
    torch.manual_seed(0)
    network = networks.keep_head_in_fp32(networks.build("cnn"), "cnn")
    seen = []
    (head,) = heads(network, "cnn")
    head.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with networks.autocast(torch.device("cpu"), "bf16"):
        network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert seen == [(torch.bfloat16, torch.float32)]
    assert head.weight.grad.dtype == torch.float32


def test_fp32_on_a_gpu_is_no_tf32():
    torch.backends.cudnn.allow_tf32 = True
    networks.real_fp32()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
