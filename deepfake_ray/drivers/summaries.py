"""What a job of the command line gives back, for --json."""

from dataclasses import asdict
from typing import Any

from deepfake_ray.models.spec import Spec
from deepfake_ray.storage import files


def summarise_bundle(spec: Spec, output: str) -> dict[str, Any]:
    """Of a job that wrote OUTPUT/model: where it is, and what its validation split says of it."""
    return {
        "output": output,
        "model": files.join(output, "model"),
        "model_id": spec.model_id,
        "arch": spec.arch,
        "image_size": spec.preparation.image_size,
        "best_epoch": spec.provenance.get("best_epoch"),
        "validation": spec.provenance.get("validation", {}),
        "temperature": spec.temperature,
        "thresholds": asdict(spec)["thresholds"],
    }
