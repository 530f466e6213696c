"""What lies in OUTPUT/predictions: read, counted, and warned of."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from deepfake_ray import schema
from deepfake_ray.errors import JobError
from deepfake_ray.storage import files

ONE_SIDED = 0.98
"""Warn when more than this share of the verdicts is the same."""


def read_predictions(output: str, columns: list[str] | None = None) -> pa.Table:
    """All rows of OUTPUT/predictions, in manifest order; with `row` and the columns, or all of them."""
    fs, path = files.filesystem(files.join(output, "predictions"))
    wanted = None if columns is None else list(dict.fromkeys(["row", *columns]))
    return pads.dataset(path, filesystem=fs, format="parquet").to_table(columns=wanted).sort_by("row")


def count(predictions: str, num_expected: int) -> dict[str, Any]:
    """Count the written rows, by batches, whatever their number.

    Raises:
        JobError: they are not exactly as many as they have to be.
    """
    fs, path = files.filesystem(predictions)
    data = pads.dataset(path, filesystem=fs, format="parquet")
    codes: Counter[str] = Counter()
    called: Counter[str] = Counter()
    histogram = np.zeros(20, np.int64)
    num_rows = 0
    for batch in data.to_batches(columns=["error_code", "predicted_label", "p_fake"]):
        num_rows += len(batch)
        codes.update(code for code in batch["error_code"].to_pylist() if code is not None)
        called.update(label for label in batch["predicted_label"].to_pylist() if label is not None)
        scores = batch["p_fake"].drop_null().to_numpy()
        histogram += np.histogram(scores, bins=len(histogram), range=(0, 1))[0]
    if num_rows != num_expected:
        raise JobError(f"{predictions} has {num_rows} rows instead of {num_expected}; it was changed by others")
    return {
        "num_ok": num_rows - codes.total(),
        "num_errors": codes.total(),
        "errors_by_code": dict(codes),
        "num_predicted": {label: called[label] for label in schema.CLASSES},
        "p_fake_histogram": histogram.tolist(),
    }


def warnings_of(counts: dict[str, Any]) -> list[str]:
    """What `count` found that the user should look at."""
    num_ok = counts["num_ok"]
    return [
        f"{number / num_ok:.1%} of the images are called {label}: if you expected both, the model or its threshold "
        "does not fit these images."
        for label, number in counts["num_predicted"].items()
        if num_ok >= 100 and number > ONE_SIDED * num_ok
    ]
