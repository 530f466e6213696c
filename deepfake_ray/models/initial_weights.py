"""Initial weights: torchvision's download, a file, a bundle, or none. Never random ones by silence."""

import io
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision

from deepfake_ray.errors import UserError
from deepfake_ray.models import bundle, networks
from deepfake_ray.storage import files

IMAGENET = "imagenet"
NONE = "none"


def default_weights(arch: str) -> str:
    """What `--weights` is when it is not given."""
    return NONE if arch == networks.CNN else IMAGENET


def initial_state(arch: str, weights: str, seed: int) -> dict[str, torch.Tensor]:
    """The state_dict that training starts from; what `weights` does not give is drawn from `seed`.

    Args:
        arch: `cnn` or a torchvision name.
        weights: `imagenet`, `none`, or a path/URI of a .pth or .safetensors state_dict or of a bundle.
        seed: of the random part (a new head, or everything).

    Raises:
        UserError: the weights cannot be had, or are not of this arch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.build(arch)
    if weights == IMAGENET:
        networks.load_initial(network, arch, _imagenet(arch), f"torchvision's ImageNet weights of {arch}")
    elif weights != NONE:
        networks.load_initial(network, arch, _from_place(arch, weights), weights)
    return network.state_dict()


def _imagenet(arch: str) -> dict[str, torch.Tensor]:
    if arch == networks.CNN:
        raise UserError("weights imagenet exist for torchvision's models only: got --arch cnn; use --weights none.")
    weights = torchvision.models.get_model_weights(arch).DEFAULT
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        return state
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"weights imagenet are downloaded from {weights.url}, which failed ({error}); fetch that file where there "
            "is a network and give --weights FILE, or train from random weights with --weights none."
        ) from error


def _from_place(arch: str, place: str) -> dict[str, torch.Tensor]:
    place = files.absolute(place)
    if not files.exists(place):
        raise UserError(f"weights must be imagenet, none, a file or a bundle: {place} does not exist; check the path.")
    if files.exists(files.join(place, bundle.SPEC)):
        spec, arrays = bundle.load(place)
        if spec.arch != arch:
            raise UserError(f"weights must be of the arch: {place} is {spec.arch}, --arch is {arch}; make them equal.")
        return {key: torch.from_numpy(value) for key, value in arrays.items()}
    data = files.read_bytes(place)
    try:
        if place.endswith(".safetensors"):
            return dict(safetensors.torch.load(data))
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"weights must be a state_dict saved by torch or safetensors: {place} cannot be loaded safely "
            f"({str(error).splitlines()[0][:200]}); save the model's state_dict() and give that file."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"weights must be a flat state_dict of tensors: {place} is not; save the model's state_dict() alone."
        )
    return state
