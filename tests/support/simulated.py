"""Made-up scores and labels, and predictions that have them."""

import numpy as np
import pyarrow as pa

from deepfake_ray import schema
from deepfake_ray.evaluation import summary
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models.scores import p_fake_of, threshold_at
from deepfake_ray.models.spec import Spec


def simulated(num_images=400, seed=0):
    """Labels and logits with many ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, num_images)
    return labels, np.round(random.normal(labels * 1.5 - 0.5, 1.0), 1)


def predictions(labels, logits, **columns):
    names = [schema.CLASSES[label] for label in labels]
    nothing = dict.fromkeys(summary.COLUMNS, [None] * len(labels))
    found = pa.table({**nothing, "true_label": names, **columns})
    z = np.asarray(logits, np.float32)
    for name, values in (("logit", z), ("p_fake", p_fake_of(z, 1.0).astype(np.float32))):
        found = found.set_column(found.column_names.index(name), name, pa.array(values))
    return found


MODEL = Spec(
    arch="cnn", preparation=Preparation(image_size=32), temperature=1.0,
    thresholds={"default": threshold_at(0.5, 1.0), "balanced": threshold_at(0.4, 1.0)},
)  # fmt: skip
