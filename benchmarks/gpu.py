"""What one GPU does, without Ray: forward passes and training steps of a model; and what a CPU core decodes, so that
one knows how many a GPU needs. Needs torch, torchvision, simplejpeg and this checkout; prints JSON, a line for each.

    python benchmarks/gpu.py --arch resnet50 --image-size 224
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import simplejpeg
import torch

from deepfake_ray.images.decode import Limits, decode
from deepfake_ray.images.preprocessing import DECODE_MARGIN, Preparation, prepare
from deepfake_ray.models import networks
from deepfake_ray.models.inference import _compiled, _folded
from deepfake_ray.training.optimization import loss_sum, make_optimizer


def rate(step, number, seconds, device):
    """Images/s of `step`, which does `number` of them: the median of five equal parts, after a warm-up."""

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    parts = []
    for _ in range(5):
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / 5:
            step()
            wait()
            done += number
        parts.append(done / (time.perf_counter() - started))
    return statistics.median(parts)


def detector_of(arch, preparation, device):
    torch.manual_seed(0)
    detector = networks.Detector(networks.build(arch), preparation)
    return detector.to(device, memory_format=torch.channels_last)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: skipped")
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    preparation = Preparation(image_size=options.image_size)

    def say(what, batch_size, images_per_s):
        print(json.dumps({"device": name, "arch": options.arch, "image_size": options.image_size, "what": what,
                          "batch_size": batch_size, "images_per_s": round(images_per_s, 1)}), flush=True)  # fmt: skip

    for batch_size in options.batch_sizes:
        shape = (batch_size, options.image_size, options.image_size, 3)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        labels = torch.randint(0, 2, (batch_size,), device=device)
        for precision in ("fp32", "bf16"):
            autocast = networks.autocast(device, precision)
            eager = detector_of(options.arch, preparation, device).eval()
            folded = detector_of(options.arch, preparation, device).eval()
            folded.network = _folded(folded.network)
            for what, model in (("eager", eager), ("folded", folded), ("compiled", _compiled(folded))):

                def forward(model=model, autocast=autocast, pixels=pixels):
                    with torch.inference_mode(), autocast:
                        model(pixels)

                say(f"forward, {precision}, {what}", batch_size, rate(forward, batch_size, options.seconds, device))
            trained = detector_of(options.arch, preparation, device).train()
            optimizer = make_optimizer(
                trained.network, options.arch, "baseline", learning_rate=1e-3, lr_backbone=None, weight_decay=0.0
            )
            weights = torch.ones(2, device=device)

            def step(model=trained, optimizer=optimizer, autocast=autocast, x=pixels, y=labels, weights=weights):
                with autocast:
                    outputs = model(x)
                (loss_sum(outputs, y, weights, 0.0) / len(y)).backward()
                optimizer.step()
                optimizer.zero_grad()

            say(f"training step, {precision}", batch_size, rate(step, batch_size, options.seconds, device))

    for side in (options.image_size, 1024, 4000):
        noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(np.kron(noise, np.ones((8, 8, 1), np.uint8))), 90)
        limits = Limits(max_bytes=10**9, max_pixels=10**9)
        reduced = Preparation(image_size=options.image_size, decode_margin=DECODE_MARGIN)

        def read(data=data, limits=limits, reduced=reduced):
            prepare(decode(data, limits, reduced.enough).pixels, reduced)

        rate_of_core = rate(read, 1, options.seconds / 3, torch.device("cpu"))
        say(f"decoding JPEGs of {side} px on one core", 1, rate_of_core)


if __name__ == "__main__":
    main()
