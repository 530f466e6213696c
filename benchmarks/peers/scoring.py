"""What the scoring peers share: their arguments, the model as a user has it, and a log of the batches that are done."""

import argparse
import os
import time
from pathlib import Path

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--images", required=True, help="a file with a path a line")
    parser.add_argument("--model", required=True, help="a bundle, for its weights and its image size")
    parser.add_argument("--output", required=True, help="a new directory")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--in-batches", type=int, default=0, help="1: Daft reads and decodes a batch at a time, too")
    found = parser.parse_args()
    Path(found.output).mkdir(parents=True)
    found.paths = Path(found.images).read_text().splitlines()
    return found


class Model:
    """The bundle's network with its weights, in evaluation mode, as a user would load it with torch alone."""

    def __init__(self, place, threads):
        import torch
        from safetensors.torch import load_file

        from deepfake_ray.models import bundle, networks

        torch.set_num_threads(threads)
        spec = bundle.load_spec(place)
        self.image_size = spec.preparation.image_size
        self.network = networks.build(spec.arch).eval()
        self.network.load_state_dict(load_file(f"{place}/model.safetensors"))
        self.network.to(memory_format=torch.channels_last)
        self._autocast = networks.autocast(torch.device("cpu"), "auto")

    def p_fake(self, x):
        """Normalised float32 (B, 3, S, S) -> float32 (B,)."""
        import torch

        with torch.inference_mode(), self._autocast:
            outputs = self.network(x.contiguous(memory_format=torch.channels_last))
        return outputs.float().softmax(1)[:, 1].numpy()

    def p_fake_of_pixels(self, pixels):
        """uint8 (B, S, S, 3) -> float32 (B,)."""
        import torch

        x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
        return self.p_fake((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))


def transform(image_size):
    """torchvision's, as its documentation has them for inference."""
    import torch
    from torchvision.transforms import v2

    resize = v2.Resize((image_size, image_size))
    return v2.Compose([v2.ToImage(), resize, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def note(output, number):
    """A batch is done: append its time and size, and which process did it."""
    with open(Path(output, "batches.log"), "a") as file:
        file.write(f"{time.time()} {number} {os.getpid()}\n")
