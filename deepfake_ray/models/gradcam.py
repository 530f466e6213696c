"""Where in an image a verdict comes from: Grad-CAM. Pure torch: knows no Ray."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deepfake_ray.images.decode import Pixels
from deepfake_ray.models import bundle, networks
from deepfake_ray.schema import FAKE

MIN_SIDE = 4
"""Maps with fewer places across say nothing of where."""


class GradCam:
    """Of a bundle's model (Selvaraju et al. 2017, arXiv 1610.02391).

    Which activations: the last ones that still have places in the image and reach the verdict. Those of a ViT are its
    tokens without the class token.
    """

    def __init__(self, model: str):
        spec, arrays = bundle.load(model)
        network = networks.build(spec.arch)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()}, strict=True)
        self._detector = networks.Detector(network, spec.preparation).eval()
        self._has_tokens = spec.arch.startswith("vit_")

    def heat(self, image: Pixels, verdict: int) -> NDArray[np.float32] | None:
        """uint8 (S, S, 3), prepared, and REAL or FAKE -> float32 (S, S) in [0, 1]: what speaks for that verdict, the
        strongest being 1; None if nothing does, or if the network has no activations with places.
        """
        maps: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad and self._grid(output) is not None:
                maps.append(output)

        hooks = [module.register_forward_hook(keep) for module in self._detector.network.modules()]
        try:
            pixels = torch.from_numpy(np.array(image[None]))
            logit = networks.fake_logit(self._detector(pixels))[0]
        finally:
            for hook in hooks:
                hook.remove()
        towards = logit if verdict == FAKE else -logit
        slopes = torch.autograd.grad(towards, maps, allow_unused=True) if maps else ()
        for output, slope in zip(reversed(maps), reversed(slopes), strict=True):
            activations = self._grid(output.detach())
            gradients = None if slope is None else self._grid(slope)
            if activations is None or gradients is None or not gradients.any():
                continue  # beside the way to the verdict, as a ViT's last tokens
            heat = F.relu((gradients.mean((1, 2), keepdim=True) * activations).sum(0))
            if not heat.max() > 0:
                return None
            heat = F.interpolate(heat[None, None] / heat.max(), image.shape[:2], mode="bilinear")[0, 0]
            return np.asarray(heat.numpy(), np.float32)
        return None

    def _grid(self, output: Tensor) -> Tensor | None:
        """(C, H, W) of one image's activations, if they have places. Images are squares, and so are their grids."""
        if self._has_tokens and output.ndim == 3:
            side = round((output.shape[1] - 1) ** 0.5)
            if side >= MIN_SIDE and side**2 == output.shape[1] - 1:
                return output[0, 1:].reshape(side, side, -1).permute(2, 0, 1)
        if output.ndim == 4 and output.shape[2] == output.shape[3] >= MIN_SIDE:
            return output[0]
        return None
