"""The bundle: a directory that holds a trained model and all that is needed to use it.

`model.safetensors` (torchvision's keys, float32), `model.json` (see `Spec`), `MODEL_CARD.md`. Read without torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from deepfake_ray.errors import UserError
from deepfake_ray.images.preprocessing import STRETCH, Preparation
from deepfake_ray.models.scores import Threshold, in_digits, threshold_at
from deepfake_ray.schema import CLASSES, PRECISIONS
from deepfake_ray.storage import files

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, FORMAT_VERSION)
"""Format 1 had plain numbers on p_fake as thresholds, and no precision."""
WEIGHTS = "model.safetensors"
SPEC = "model.json"
CARD = "MODEL_CARD.md"
EVALUATIONS = "evaluations"
"""A directory: a JSON file for each data set and split that the model was evaluated on."""

Arrays = dict[str, NDArray[Any]]
Scales = dict[str, tuple[float, int]]
"""Activation, by the path of its module -> scale, zero point: value = scale * (integer - zero point), integers 0 to
255."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """`model.json`: what the model is, how images are prepared for it, how its logits become a verdict."""

    arch: str
    preparation: Preparation
    temperature: float
    """p_fake = sigmoid(logit / temperature)."""
    thresholds: dict[str, Threshold]
    """default, balanced, fpr_1, fpr_5; chosen on the validation split."""
    precision: str = ""
    """In which the logits were computed that temperature and thresholds were chosen on: one of `PRECISIONS`; empty,
    where the bundle is of format 1, which did not note it."""
    prior: dict[str, float] = field(default_factory=dict)
    """Class -> its share among the images that p_fake is for; empty, where the bundle does not say."""
    scales: Scales = field(default_factory=dict)
    """Of the activations, where the network computes in 8-bit integers (see `quantization`); empty: it does not."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it came to be: configuration, data, versions, validation figures."""
    classes: tuple[str, ...] = CLASSES
    format_version: int = FORMAT_VERSION
    sha256: str = ""
    """Of model.safetensors."""

    @property
    def model_id(self) -> str:
        """16 hex digits that change with anything that can change a score; scores in the bundle's own precision."""
        return self.model_id_in(self.precision)

    def model_id_in(self, precision: str) -> str:
        """The `model_id` of scores that were computed in a precision, which may be another than the bundle's own.

        Args:
            precision: one of `PRECISIONS`; empty, as before format 2, where it was not noted.
        """
        identity = {
            "sha256": self.sha256,
            "arch": self.arch,
            "classes": list(self.classes),
            "preparation": self.preparation.to_json(),
            "temperature": self.temperature,
            **({"scales": self.scales} if self.scales else {}),
            **({"precision": precision} if precision else {}),
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def made(self, model_id: str) -> bool:
        """Whether scores with this `model_id` are by this model, in whichever precision."""
        return model_id in {self.model_id_in(precision) for precision in ("", *PRECISIONS)}

    def threshold(self, name_or_number: str) -> Threshold:
        """The threshold of that name, or at that p_fake.

        Raises:
            UserError: it is neither.
        """
        if name_or_number in self.thresholds:
            return self.thresholds[name_or_number]
        try:
            return threshold_at(float(name_or_number), self.temperature)
        except ValueError as error:
            raise UserError(
                f"threshold must be one of {', '.join(self.thresholds)} or a number in [0, 1]: got {name_or_number!r}; "
                "try 0.5."
            ) from error


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
    files.write_bytes(files.join(uri, CARD), _card(spec).encode())
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


def _prepared(preparation: Preparation) -> str:
    square = f"{preparation.image_size} x {preparation.image_size} px"
    return f"resized to {square}" if preparation.resize == STRETCH else f"a square of {square} cut out of it"


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
    ours = _is_ours(files.read_bytes(card)) if files.exists(card) else True
    files.write_json(files.join(uri, EVALUATIONS, f"{of}.json"), kept)
    if ours:
        files.write_bytes(card, _card(load_spec(uri), _evaluations(uri)).encode())
    return ours


def _evaluations(uri: str) -> list[dict[str, Any]]:
    folder = files.join(uri, EVALUATIONS)
    return [files.read_json(files.join(folder, name)) for name in sorted(files.list_names(folder))]


_SIGNED = "<!-- written by deepfake_ray, "


def _signed(text: str) -> str:
    """With a last line that says that the rest is as it was written."""
    return f"{text}\n{_SIGNED}{hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def _is_ours(card: bytes) -> bool:
    """Whether a card is as it was written here: nobody's words are overwritten."""
    text, found, _ = card.decode(errors="replace").rpartition(f"\n{_SIGNED}")
    return bool(found) and _signed(text).encode() == card


def _table_of(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        return "None yet."
    rows = [
        f"| {_cell(one['data'])} | {one['split']} | {one['num_scored']:,} | "
        f"{_with_interval(one['roc_auc'], one['roc_auc_interval'])} | "
        f"{_with_interval(one['balanced_accuracy'], one['balanced_accuracy_interval'])} | "
        f"{one['threshold_name']} ({in_digits(one['threshold'])}) |"
        for one in sorted(evaluations, key=lambda one: (one["data"], one["split"]))
    ]
    head = (
        "| data | split | images | ROC AUC (95 %) | balanced accuracy (95 %) | threshold |\n|---|---|---|---|---|---|"
    )
    return "\n".join([head, *rows])


def _cell(text: str) -> str:
    """In a row of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _meaning(spec: Spec) -> str:
    """For which images p_fake is the probability that it says it is."""
    if not spec.prior:
        return "It does not say how many reals and fakes `p_fake` is for: the validation split's shares."
    real, fake = spec.prior["real"], spec.prior["fake"]
    return (
        f"`p_fake` is for images of which {real:.4g} are real and {fake:.4g} fake. Where a share q is fake, the "
        f"probability is sigmoid(logit / {spec.temperature:.4f} + log(q / (1 - q)) - ({np.log(fake / real):.4f}))."
    )


def _card(spec: Spec, evaluations: Sequence[Mapping[str, Any]] = ()) -> str:
    validation = spec.provenance.get("validation", {})
    data = spec.provenance.get("data", {})
    figures = "\n".join(f"| {key} | {_with_interval(value, None)} |" for key, value in validation.items())
    thresholds = "\n".join(
        f"| {name} | {in_digits(at.p_fake, 6)} | {at.logit:.6g} | {_count(at.num_real)} | {_count(at.num_fake)} |"
        for name, at in spec.thresholds.items()
    )
    text = f"""# {spec.arch}: real or fake

A deepfake_ray bundle, model `{spec.model_id}`. It takes an RGB image, {_prepared(spec.preparation)}, and gives
`p_fake`, the probability that the image is fake. {_meaning(spec)}

## Trained on
{data.get("place", "unknown")} (manifest {str(data.get("manifest_sha256", "unknown"))[:16]}): \
{json.dumps(data.get("num_images", {}))}

## On its validation split
| metric | value |
|---|---|
{figures}

The best epoch, the temperature ({spec.temperature:.4f}) and the thresholds below were chosen on this split, so its
figures flatter the model. Use `jobs/evaluate.py` on images that played no part in training.

| threshold | p_fake | logit | reals behind it | fakes |
|---|---|---|---|---|
{thresholds}

## Evaluated on
{_table_of(evaluations)}

## Limits
It knows the generators and the cameras of its training data. On images from other generators, or re-saved by other
software, expect it to be worse, possibly no better than chance: measure before you rely on it. A score is evidence,
not proof.
"""
    return _signed(text)
