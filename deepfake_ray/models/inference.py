"""A bundle on a device: uint8 images -> logits. Knows no Ray, so that it runs where torch alone is."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepfake_ray.models import bundle, int8, networks
from deepfake_ray.models.spec import Spec
from deepfake_ray.models.torch_internals import prepare_compiling
from deepfake_ray.schema import FP32


class Predictor:
    """A loaded model in evaluation mode.

    Args:
        model: the bundle's place.
        device: `cpu` or `cuda`.
        precision: bf16 or fp32, of all layers but the last, which is always in fp32; None: the bundle's own. Without
            effect on a quantised bundle.
        num_threads: that torch computes with on a CPU.
        compiled_for: images a batch; the network is compiled for them by TorchInductor, weights frozen, before this
            returns. Another number is compiled anew. None: it is not compiled.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "cpu",
        precision: str | None = None,
        num_threads: int = 1,
        compiled_for: int | None = None,
    ):
        torch.set_num_threads(num_threads)
        self.spec, detector = evaluated(model)
        self._device = torch.device(device)
        networks.real_fp32()
        precision = precision or self.spec.precision or FP32
        if self.spec.scales:
            int8.require_vnni()
            size = self.spec.preparation.image_size
            detector.network = int8.quantized(detector.network, self.spec.scales, size)
            precision = FP32  # of the layers that are left
        else:
            if self._device.type == "cpu":
                detector.network = _pools_of_pairs(detector.network)
            detector.network = networks.keep_head_in_fp32(_folded(detector.network), self.spec.arch)
        detector = detector.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._detector: Callable[[torch.Tensor], torch.Tensor] = detector
        on_gpu = self._device.type == "cuda"
        self._copies = torch.cuda.Stream(self._device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._autocast = networks.autocast(self._device, precision)
        if networks.runs_in_bf16(self._device, precision):
            _cast_once(detector)
        if compiled_for is not None:
            self._detector = _compiled(detector)
            size = self.spec.preparation.image_size
            self.logits(np.zeros((compiled_for, size, size, 3), np.uint8))

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (B, S, S, 3) prepared images -> float32 (B,) logits of being fake, before temperature."""
        return np.asarray(self.start(images).cpu().numpy(), np.float32)

    def start(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """As `logits`, without waiting for a GPU; `images` may be overwritten as soon as this returns."""
        batch = torch.from_numpy(images)
        if self._copies is not None:
            # Its own stream, so that the copy runs beside the forward pass of the batch before.
            with torch.cuda.stream(self._copies):
                batch = batch.pin_memory().to(self._device, non_blocking=True)
            torch.cuda.current_stream(self._device).wait_stream(self._copies)
            batch.record_stream(torch.cuda.current_stream(self._device))
        with torch.inference_mode(), self._autocast:
            return networks.fake_logit(self._detector(batch)).float()


def evaluated(model: str) -> tuple[Spec, networks.Detector]:
    """A bundle's spec, and its network with its normalisation, in evaluation mode, on the CPU, in floating point."""
    spec, arrays = bundle.load(model)
    network = networks.build(spec.arch)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()}, strict=True)
    return spec, networks.Detector(_pools_folded(network.eval()), spec.preparation).eval()


def _folded(network: nn.Module) -> nn.Module:
    """The network with its batch norms folded into the convolutions before them, which saves their passes over memory;
    as it is, where it cannot be traced.
    """
    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(network)
    except Exception:  # whatever a forward pass that branches on its values makes the tracer raise
        return network


def _pools_folded(network: nn.Module) -> nn.Module:
    """`BasicCnn` with its batch norms folded through the pooling before them; other networks as they are.

    The maximum of scaled values is the scaled maximum where the scale is positive, which training leaves it.
    """
    stages = network.features if isinstance(network, networks.BasicCnn) else nn.Sequential()
    for at in range(0, len(stages), networks.STAGE):
        convolution, norm = stages[at], stages[at + 2]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and bool((norm.weight > 0).all()):
            stages[at] = fuse_conv_bn_eval(convolution, norm)
            stages[at + 2] = nn.Identity()
    return network


def _cast_once(network: nn.Module) -> None:
    """The weights that autocast would cast to bf16 with every batch, cast; scores stay the same to the bit."""
    for module in network.modules():
        if type(module) in (nn.Conv2d, nn.Linear):  # attention looks at its own layers' dtypes
            module.bfloat16()


class _MaxOfPairs(nn.Module):
    """`nn.MaxPool2d(2)`, the same to the bit, as the maxima of pairs of rows, then of pairs of columns.

    torch's own kernel notes where each maximum lay, too, and takes a CPU two to three times as long.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W // 2)."""
        rows = torch.maximum(x[:, :, :-1:2], x[:, :, 1::2])
        return torch.maximum(rows[:, :, :, :-1:2], rows[:, :, :, 1::2])


def _pools_of_pairs(network: nn.Module) -> nn.Module:
    """`BasicCnn` with faster pooling; other networks as they are."""
    stages = network.features if isinstance(network, networks.BasicCnn) else nn.Sequential()
    for at, stage in enumerate(stages):
        if isinstance(stage, nn.MaxPool2d):
            stages[at] = _MaxOfPairs()
    return network


def _compiled(detector: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    prepare_compiling()
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(detector)
    return compiled
