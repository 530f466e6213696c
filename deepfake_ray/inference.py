"""A bundle on a device: uint8 images -> logits. Knows no Ray, so that it runs where torch alone is."""

import numpy as np
import torch
from numpy.typing import NDArray

from deepfake_ray import bundle, models


class Predictor:
    """A loaded model in evaluation mode.

    Args:
        model: the bundle's place.
        device: `cpu` or `cuda`.
        precision: auto, bf16 or fp32, see `models.autocast`.
        num_threads: that torch computes with on a CPU.
    """

    def __init__(self, model: str, *, device: str = "cpu", precision: str = "auto", num_threads: int = 1):
        torch.set_num_threads(num_threads)
        self.spec, arrays = bundle.load(model)
        network = models.build(self.spec.arch)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()}, strict=True)
        self._device = torch.device(device)
        detector = models.Detector(network, self.spec.preparation).eval()
        self._detector = detector.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        on_gpu = self._device.type == "cuda"
        self._copies = torch.cuda.Stream(self._device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._autocast = models.autocast(self._device, precision)

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
            return models.fake_logit(self._detector(batch)).float()
