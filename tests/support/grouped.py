"""Made-up predictions of images in groups, and their figures."""

import numpy as np
import pandas as pd
import pyarrow as pa
from simulated import predictions

from deepfake_ray import schema
from deepfake_ray.evaluation import comparison, robustness, summary
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models.scores import threshold_at
from deepfake_ray.models.spec import Spec

MODEL = Spec(
    arch="cnn", preparation=Preparation(image_size=32), temperature=1.0,
    thresholds={"default": threshold_at(0.5, 1.0), "fpr_5": threshold_at(0.7, 1.0)},
)  # fmt: skip


AT = MODEL.thresholds["default"]


def images(num_groups=200, per_group=4, seed=0):
    """Groups (videos) of one class and source each, whose images share most of their score."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(num_groups), per_group)
    label, number = group % 2, len(group)
    own, other = random.normal(size=(2, num_groups))[:, group]
    noise = 0.4 * random.normal(size=(3, number))
    return pd.DataFrame(
        {
            "label": label,
            "logit": 1.2 * label - 0.6 + own + noise[0],
            "after": 0.8 * label - 0.6 + own + other + noise[1],
            "other": 0.8 * label - 0.4 + 0.5 * own + other + noise[2],
            "group": [f"video {one}" for one in group],
            "source": np.array(["a", "b"])[group // 2 % 2],
            "format": np.array(["JPEG", "PNG"])[group // 4 % 2],
            "width": 100, "height": 100,
        }
    )  # fmt: skip


def measured(frame):
    """metrics.json's part of images: figures, slices, degradations, comparison."""
    columns = {name: frame[name].tolist() for name in ("group", "source", "format", "width", "height")}
    scored = predictions(frame.label.to_numpy(), frame.logit.to_numpy(), **columns)
    result = summary.measure(scored, MODEL, "default")
    names = [schema.CLASSES[label] for label in frame.label]
    rows = frame.assign(row=range(len(frame)), uri=[f"/{i}" for i in range(len(frame))], true_label=names)
    after = pa.Table.from_pandas(rows.assign(logit=rows.after, degradation="jpeg_50"))
    result["degradations"] = robustness.figures_by_degradation(pa.Table.from_pandas(rows), after, AT)
    result["comparison"] = comparison.compare(rows, rows.assign(logit=rows.other), (AT, AT))
    return result
