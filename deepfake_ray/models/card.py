"""`MODEL_CARD.md`: what a model was trained and evaluated on, and what its scores mean, in words."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepfake_ray.images.preprocessing import STRETCH, Preparation
from deepfake_ray.models.scores import format_p_fake
from deepfake_ray.models.spec import Spec

CARD = "MODEL_CARD.md"


def _prepared(preparation: Preparation) -> str:
    square = f"{preparation.image_size} x {preparation.image_size} px"
    return f"resized to {square}" if preparation.resize == STRETCH else f"a square of {square} cut out of it"


_SIGNED = "<!-- written by deepfake_ray, "


def _signed(text: str) -> str:
    """With a last line that says that the rest is as it was written."""
    return f"{text}\n{_SIGNED}{hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def is_ours(card: bytes) -> bool:
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
        f"{one['threshold_name']} ({format_p_fake(one['threshold'])}) |"
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


def card_text(spec: Spec, evaluations: Sequence[Mapping[str, Any]] = ()) -> str:
    """The card of a bundle, with the figures of the evaluations that it keeps (see `bundle.add_evaluation`)."""
    validation = spec.provenance.get("validation", {})
    data = spec.provenance.get("data", {})
    figures = "\n".join(f"| {key} | {_with_interval(value, None)} |" for key, value in validation.items())
    thresholds = "\n".join(
        f"| {name} | {format_p_fake(at.p_fake, 6)} | {at.logit:.6g} | {_count(at.num_real)} | {_count(at.num_fake)} |"
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
