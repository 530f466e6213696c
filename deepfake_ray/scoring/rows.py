"""The rows of a chunk's predictions."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepfake_ray import schema
from deepfake_ray.images.loading import Loaded
from deepfake_ray.models.scores import is_predicted_fake, p_fake_of
from deepfake_ray.models.spec import Spec
from deepfake_ray.scoring.spec import ScorerSpec

if TYPE_CHECKING:
    pass


def predictions(
    rows: pa.Table, images: list[Loaded], logits: NDArray[np.float32], model: Spec, spec: ScorerSpec
) -> pa.Table:
    """One row of `schema.PREDICTIONS` for each row of the manifest, in the same order; of `schema.DEGRADED`, one for
    each degradation of each row.

    Args:
        rows: of the manifest (N).
        images: what is known of each.
        logits: float32 (N, D), D the degradations, 1 without.
        model: the bundle's.
        spec: of the run.
    """
    number = logits.shape[1]
    rows = rows.take(pa.array(np.repeat(np.arange(len(rows)), number)))
    images = [image for image in images for _ in range(number)]
    logits = logits.reshape(-1)
    failed = np.array([image.error is not None for image in images], bool)
    p_fake = p_fake_of(logits, model.temperature).astype(np.float32)
    called = np.where(
        is_predicted_fake(logits, spec.threshold), schema.CLASSES[schema.FAKE], schema.CLASSES[schema.REAL]
    )

    def known(values: NDArray[Any]) -> pa.Array:
        return pa.array(values, mask=failed)

    columns: dict[str, Any] = {
        "row": rows["row"],
        "uri": rows["uri"],
        "status": np.where(failed, schema.ERROR, schema.OK),
        "error_code": [None if image.error is None else str(image.error.code) for image in images],
        "error_message": [None if image.error is None else image.error.message for image in images],
        "logit": known(logits),
        "p_fake": known(p_fake),
        "predicted_label": known(called.astype(object)),
        "threshold": np.full(len(images), spec.threshold.p_fake),
        "threshold_logit": np.full(len(images), spec.threshold.logit, np.float32),
        "model_id": [model.model_id_in(spec.precision)] * len(images),
        "run_id": [spec.run_id] * len(images),
        "scored_at": [datetime.now(UTC)] * len(images),
        "true_label": rows["label"],
        "split": rows["split"],
        "source": rows["source"],
        "group": rows["group"],
    }
    for name in ("sha256", "num_bytes", "format", "width", "height", "jpeg_quality"):
        columns[name] = [getattr(image, name) for image in images]
    columns["degradation"] = spec.degradations * (len(images) // number)
    wanted = schema.DEGRADED if spec.degradations else schema.PREDICTIONS
    return pa.table([columns[field.name] for field in wanted], schema=wanted)
