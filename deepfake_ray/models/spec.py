"""`model.json`: what a model is, how images are prepared for it, how its logits become a verdict."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from deepfake_ray.errors import UserError
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models.scores import Threshold, threshold_at
from deepfake_ray.schema import CLASSES, PRECISIONS

FORMAT_VERSION = 2


READABLE_VERSIONS = (1, FORMAT_VERSION)
"""Format 1 had plain numbers on p_fake as thresholds, and no precision."""


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
    """Of the activations, where the network computes in 8-bit integers (see `int8`); empty: it does not."""
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
