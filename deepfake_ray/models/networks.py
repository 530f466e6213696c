"""The networks: a small CNN and every torchvision classifier, with two outputs, on uint8 images.

Knows no Ray.
"""

import difflib
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from deepfake_ray.errors import UserError
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models.hardware import cpu_computes_bf16
from deepfake_ray.schema import CLASSES, FAKE, REAL

log = logging.getLogger(__name__)

CNN = "cnn"
CNN_SIZE = 128
"""The largest side that the CNN is given by default."""
RESNET50 = "resnet50"

STAGE = 4
"""Modules in each of the CNN's stages."""

State = Mapping[str, Tensor]


class BasicCnn(nn.Module):
    """Four stages of 3x3 convolution, 2x2 max pooling, batch norm and ReLU, then two fully connected layers.

    float32 (B, 3, H, W), H and W at least 32 -> logits (B, 2). Global average pooling before the dense layers makes
    it take any size. 15 M multiply-adds at 32 px, 456 k parameters. Pooling comes first because what follows then
    works on a quarter of the values: a training step takes 3/4 of the time on a CPU.
    """

    def __init__(self, num_classes: int = 2, widths: tuple[int, ...] = (32, 64, 128, 256), dropout: float = 0.3):
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for width in widths:
            stages += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(256, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.classifier(self.features(x))


class Detector(nn.Module):
    """A network and the normalisation that it was trained with: uint8 (B, H, W, 3) -> float32 (B, 2).

    `network` alone is saved, so that the bundle has torchvision's keys.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preparation: Preparation):
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(preparation.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(preparation.std), persistent=False)

    def normalized(self, images: Tensor) -> Tensor:
        """float32 (B, 3, H, W), what the network is given."""
        width = images.shape[2]
        # By rows of W x 3 values: torch is eight times slower on a CPU where the innermost dimension has 3.
        rows = images.float().flatten(2).sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return rows.view(images.shape).permute(0, 3, 1, 2)  # a view, in channels_last order

    def forward(self, images: Tensor) -> Tensor:
        """Normalise on the device, then classify."""
        return self.network(self.normalized(images)).float()


def fake_logit(outputs: Tensor) -> Tensor:
    """(B, 2) outputs -> (B,) logits of being fake, before temperature."""
    return outputs[:, FAKE] - outputs[:, REAL]


def build(arch: str, num_classes: int = len(CLASSES)) -> nn.Module:
    """A network with random weights.

    Raises:
        UserError: no such arch.
    """
    require_known(arch)
    if arch == CNN:
        return BasicCnn(num_classes)
    import torchvision

    return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **_INCEPTION.get(arch, {}))


def require_known(arch: str) -> None:
    """Raise if there is no such arch.

    Raises:
        UserError: names those that are spelled alike.
    """
    if arch == CNN:
        return
    import torchvision  # takes as long as torch, and the CNN does without

    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        near = difflib.get_close_matches(arch, [CNN, *known], n=3) or [CNN, RESNET50, "efficientnet_b0"]
        raise UserError(
            f"arch must be cnn or a torchvision classification model: got {arch!r}; try {' or '.join(near)} (all: "
            "https://docs.pytorch.org/vision/stable/models.html)."
        )


# These two have a second head for training, which the field no longer uses, and were trained by Google on another
# normalisation, which torchvision converts ImageNet's into when it is told to.
_INCEPTION: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def native_size(arch: str) -> int:
    """The image side in pixels that the arch's ImageNet weights were evaluated at (cnn: 128)."""
    if arch == CNN:
        return CNN_SIZE
    import torchvision

    crop = torchvision.models.get_model_weights(arch).DEFAULT.transforms().crop_size
    return int(crop[0])


def has_fixed_size(arch: str) -> bool:
    """Whether the arch takes one image size only (position embeddings, window partitions)."""
    return arch.startswith(("vit_", "maxvit"))


def choose_image_size(arch: str, median_short_side: int) -> int:
    """The default image side: the data's own, down to a multiple of 32, between 32 and the arch's native size.

    Small images are not blown up: interpolation adds no evidence, and costs time by the square.
    """
    native = native_size(arch)
    if has_fixed_size(arch):
        return native
    return min(native, max(32, median_short_side // 32 * 32))


def check_image_size(arch: str, image_size: int) -> None:
    """Try the shapes through the network, without memory or arithmetic.

    Raises:
        UserError: the arch does not take that size.
    """
    network = _shapes_of(arch).eval()
    with torch.device("meta"):
        try:
            network(torch.empty(1, 3, image_size, image_size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"image-size must suit the arch: {arch} does not take {image_size} px "
                f"({str(error).splitlines()[0][:120]}); try {native_size(arch)}."
            ) from error


def _shapes_of(arch: str, num_classes: int = len(CLASSES)) -> nn.Module:
    """The network without memory for its weights."""
    try:
        with torch.device("meta"):
            return build(arch, num_classes)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return build(arch, num_classes).to("meta")


@lru_cache
def head_keys(arch: str) -> frozenset[str]:
    """The parameters whose shape depends on the number of classes: the head that is replaced."""
    two, three = _shapes_of(arch, 2).state_dict(), _shapes_of(arch, 3).state_dict()
    return frozenset(key for key in two if two[key].shape != three[key].shape)


def load_initial(network: nn.Module, arch: str, state: State, origin: str) -> None:
    """Load weights trained elsewhere; the head too where it has two classes, else it stays random, which is logged.

    Raises:
        UserError: the state is not one of this arch.
    """
    wanted = network.state_dict()
    heads = head_keys(arch)
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in state.items()
        if not (arch in _INCEPTION and key.startswith(_AUXILIARY))
    }
    keeps_head = all(key in state and state[key].shape == wanted[key].shape for key in heads)
    if not keeps_head:
        state = {key: value for key, value in state.items() if key not in heads}
    missing = [k for k in wanted if k not in state and k not in heads and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    odd = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    if missing or unexpected or odd:
        raise UserError(
            f"weights must be those of {arch}: {origin} lacks {len(missing)} ({', '.join(missing[:2])}), has "
            f"{len(unexpected)} unknown ({', '.join(unexpected[:2])}) and {len(odd)} of another shape "
            f"({', '.join(odd[:2])}); give --arch the file's own, or another file."
        )
    network.load_state_dict(state, strict=False)
    log.info("weights from %s, head %s", origin, "included" if keeps_head else "new and random")


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; a CPU that emulates it is several times slower than in fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return cpu_computes_bf16()


def runs_in_bf16(device: torch.device, precision: str) -> bool:
    """What a precision of auto, bf16 or fp32 means: `auto` is bf16 where the device computes it natively."""
    return precision == "bf16" or (precision == "auto" and computes_bf16(device))


def real_fp32() -> None:
    """From now on, fp32 on a GPU is fp32: by default convolutions there round their inputs to 10 bits (TF32)."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


class _InFp32(nn.Module):
    """Mixed in before a layer: it computes in fp32 where autocast has the others compute in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class _Linear(_InFp32, nn.Linear):
    pass


class _Conv2d(_InFp32, nn.Conv2d):
    pass


_IN_FP32: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}


def keep_head_in_fp32(network: nn.Module, arch: str) -> nn.Module:
    """The network, changed in place: its last layer computes in fp32, whatever the precision of the others.

    It costs nothing, and in bf16 the two outputs have 8 bits each: a thousand images would share some 700 logits. The
    names of the weights stay.
    """
    for name in {key.rpartition(".")[0] for key in head_keys(arch)}:
        layer = network.get_submodule(name)
        layer.__class__ = _IN_FP32.get(type(layer), type(layer))
    return network


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which forward passes run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=runs_in_bf16(device, precision))
