"""Networks in 8-bit integers, on CPUs: post-training static quantisation (Jacob et al. 2018, arXiv 1712.05877), of
weights by output channel and of activations by tensor, with torch's FX graph mode. Knows no Ray.

The first convolution and the last layer stay in floating point: they cost little, and much of the accuracy is lost
there.
"""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from deepfake_ray.errors import UserError
from deepfake_ray.models.hardware import has_vnni
from deepfake_ray.models.spec import Scales

_ACTIVATION = "activation_post_process_"


def require_vnni() -> None:
    """Make sure that this CPU adds products of 8-bit integers without overflow.

    Raises:
        UserError: it does not.
    """
    if not has_vnni():
        raise UserError("A quantised model needs CPUs with VNNI on every node; give the model that it was made of.")


def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> Scales:
    """The scales that lose least of the values that some images give.

    Args:
        network: in evaluation mode; it is changed.
        batches: float32 (B, 3, S, S), normalised.

    Raises:
        ValueError: the network cannot be traced.
    """
    with _quietly():
        prepared: Any = None
        for batch in batches:
            if prepared is None:
                prepared = _prepared(network, batch)
            with torch.inference_mode():
                prepared(batch)
        return {place: _scale(prepared.get_submodule(name)) for place, name in _observers(prepared).items()}


def quantized(network: nn.Module, scales: Scales, image_size: int) -> nn.Module:
    """The network, float32 (B, 3, S, S) -> float32 (B, classes), in integers between.

    Args:
        network: in evaluation mode; it is changed.
        scales: of `calibrate` for the same network.
        image_size: S.

    Raises:
        ValueError: the scales are of another network.
    """
    from torch.ao.quantization import FixedQParamsObserver
    from torch.ao.quantization.quantize_fx import convert_fx

    torch.backends.quantized.engine = "x86"
    with _quietly():
        prepared = _prepared(network, torch.zeros(1, 3, image_size, image_size))
        observers = _observers(prepared)
        if all(place.startswith(_ACTIVATION) for place in scales):  # of a version that kept torch's own names
            observers = {name: name for name in observers.values()}
        if set(observers) != set(scales):
            odd = sorted(set(observers) ^ set(scales))
            raise ValueError(
                f"{len(observers)} activations, and scales of {len(scales)}, which differ in {odd[0]!r}; quantise again"
            )
        for place, name in observers.items():
            scale, zero_point = scales[place]
            fixed = FixedQParamsObserver(  # type: ignore[no-untyped-call]
                scale, zero_point, dtype=torch.quint8, quant_min=0, quant_max=255
            )
            setattr(prepared, name, fixed)
        found: nn.Module = convert_fx(prepared)
        return found


def _prepared(network: nn.Module, example: Tensor) -> Any:
    from torch.ao.quantization import HistogramObserver, PerChannelMinMaxObserver, QConfig, QConfigMapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    everywhere = QConfig(  # type: ignore[no-untyped-call]
        # All 8 bits: what would overflow without VNNI is not run there.
        activation=HistogramObserver.with_args(dtype=torch.quint8, reduce_range=False),
        weight=PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric),
    )
    mapping = QConfigMapping().set_global(everywhere)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for name in (layers[0], layers[-1]):
        mapping = mapping.set_module_name(name, None)
    try:
        return prepare_fx(network, mapping, (example[:1],))
    except Exception as error:  # whatever a forward pass that branches on its values makes the tracer raise
        raise ValueError(f"the network cannot be traced: {error}") from error


def _observers(prepared: Any) -> dict[str, str]:
    """Where activations are observed -> torch's name of the observer, which counts them.

    The places are paths in the network: of the module that an activation comes from, `layer1.0.conv1`; of a function,
    that of the module that calls it, `layer1.0:add`; of one that is called again, with a number, `layer1.0.relu#2`.
    """
    found: dict[str, str] = {}
    for node in prepared.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith(_ACTIVATION):
            path = place = _place(node.args[0])
            again = 2
            while place in found:
                place, again = f"{path}#{again}", again + 1
            found[place] = str(node.target)
    return found


def _place(node: Any) -> str:
    if node.op == "call_module":
        return str(node.target)
    callers = [*(node.meta.get("nn_module_stack") or {"": None})]
    return f"{callers[-1]}:{getattr(node.target, '__name__', node.target)}"


def _scale(observer: Any) -> tuple[float, int]:
    scale, zero_point = observer.calculate_qparams()
    return float(scale), int(zero_point)


def _quietly() -> AbstractContextManager[Any]:
    """torch 2.14 deprecates this in favour of torchao, whose 0.18 does not take a ResNet there."""
    return warnings.catch_warnings(action="ignore")
