"""The bundle: a directory that holds a trained model and all that is needed to use it.

`model.safetensors` (torchvision's keys, float32), `model.json` (see `Spec`), `MODEL_CARD.md`. Read without torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from deepfake_ray.errors import UserError
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models.card import CARD, card_text, is_ours
from deepfake_ray.models.scores import Threshold
from deepfake_ray.models.spec import FORMAT_VERSION, READABLE_VERSIONS, Spec
from deepfake_ray.schema import CLASSES
from deepfake_ray.storage import files

WEIGHTS = "model.safetensors"
SPEC = "model.json"
EVALUATIONS = "evaluations"
"""A directory: a JSON file for each data set and split that the model was evaluated on."""

Arrays = dict[str, NDArray[Any]]


def save(uri: str, spec: Spec, arrays: Arrays) -> Spec:
    """Write a bundle; `model.json` last, so that a bundle that has one is whole.

    Args:
        uri: the bundle's directory.
        spec: without `sha256`, which is filled in.
        arrays: the network's state_dict as numpy arrays.

    Returns:
        The spec as written.
    """
    weights = safetensors.numpy.save({key: np.asarray(value, order="C") for key, value in arrays.items()})
    spec = replace(spec, sha256=hashlib.sha256(weights).hexdigest())
    files.write_bytes(files.join(uri, WEIGHTS), weights)
    files.write_bytes(files.join(uri, CARD), card_text(spec).encode())
    content = {**asdict(spec), "preparation": spec.preparation.to_json(), "model_id": spec.model_id}
    files.write_json(files.join(uri, SPEC), content)
    return spec


def load_spec(uri: str) -> Spec:
    """Read `model.json`.

    Raises:
        UserError: no bundle there, or one of another format.
    """
    place = files.join(files.absolute(uri), SPEC)
    try:
        content = files.read_json(place)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"model must be a bundle, a directory with {SPEC}: {uri} has none; give OUTPUT/model of a training run."
        ) from error
    except ValueError as error:
        raise UserError(f"model must be a bundle: {place} is not JSON ({error}); train again.") from error
    except OSError as error:
        raise UserError(f"model must be readable: {place}: {error}; check path and credentials.") from error
    version = content.get("format_version")
    if version not in READABLE_VERSIONS:
        raise UserError(
            f"model must be a bundle of format {' or '.join(map(str, READABLE_VERSIONS))}: {uri} has format {version}; "
            "use the version of deepfake_ray that wrote it."
        )
    claimed = content.pop("model_id", None)
    try:
        content["preparation"] = Preparation.from_json(content["preparation"])
        content["classes"] = tuple(content["classes"])
        content["scales"] = {name: (float(s), int(z)) for name, (s, z) in content.get("scales", {}).items()}
        content["thresholds"] = {
            name: Threshold.from_json(value, content["temperature"]) for name, value in content["thresholds"].items()
        }
        spec = Spec(**{**content, "format_version": FORMAT_VERSION})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"model must be a whole bundle: {place} is not ({error}); train again.") from error
    if spec.classes != CLASSES:
        raise UserError(f"model must tell {CLASSES}: {uri} has the classes {spec.classes}; train again.")
    if claimed != spec.model_id:
        raise UserError(f"model must be as it was saved: {place} was changed since; restore it or train again.")
    return spec


def load(uri: str) -> tuple[Spec, Arrays]:
    """Read a bundle and check its weights against their hash.

    Raises:
        UserError: as `load_spec`; or the weights are missing or changed.
    """
    spec = load_spec(uri)
    return spec, safetensors.numpy.load(_weights(uri, spec))


def require_whole(uri: str) -> None:
    """Look at a bundle, its weights included.

    Raises:
        UserError: as `load`.
    """
    _weights(uri, load_spec(uri))


def _weights(uri: str, spec: Spec) -> bytes:
    place = files.join(files.absolute(uri), WEIGHTS)
    try:
        weights = files.read_bytes(place)
    except FileNotFoundError as error:
        raise UserError(f"model must be a whole bundle: {place} is missing; copy the whole directory.") from error
    if hashlib.sha256(weights).hexdigest() != spec.sha256:
        raise UserError(f"model must be as it was saved: {place} was changed or cut short; copy it again.")
    return weights


def add_evaluation(uri: str, result: Mapping[str, Any]) -> bool:
    """Keep the figures of an evaluation (metrics.json) in the bundle, in place of an older one of the same data and
    split, and write the model card anew; returns whether the card was written, which it is not if somebody else did.

    Each has a file of its own, so that two evaluations at once lose nothing of each other.

    Raises:
        OSError: the bundle cannot be written to.
    """
    uri = files.absolute(uri)
    at = result["thresholds"][result["verdict_threshold"]]
    kept = {
        **{name: result[name] for name in ("data", "split", "num_scored", "roc_auc")},
        "roc_auc_interval": result["intervals"]["roc_auc"],
        "balanced_accuracy": at["balanced_accuracy"],
        "balanced_accuracy_interval": at["intervals"]["balanced_accuracy"],
        "threshold_name": result["verdict_threshold"],
        "threshold": at["threshold"],
        "model_id": result["model_id"],
    }
    of = hashlib.sha256(json.dumps([kept["data"], kept["split"]]).encode()).hexdigest()[:16]
    card = files.join(uri, CARD)
    ours = is_ours(files.read_bytes(card)) if files.exists(card) else True
    files.write_json(files.join(uri, EVALUATIONS, f"{of}.json"), kept)
    if ours:
        files.write_bytes(card, card_text(load_spec(uri), _evaluations(uri)).encode())
    return ours


def _evaluations(uri: str) -> list[dict[str, Any]]:
    folder = files.join(uri, EVALUATIONS)
    return [files.read_json(files.join(folder, name)) for name in sorted(files.list_names(folder))]
