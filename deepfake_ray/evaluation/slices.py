"""Which part of the images a model fails on: figures by source, format, size, JPEG quality and split.

Knows neither Ray nor torch.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from deepfake_ray.evaluation import intervals
from deepfake_ray.evaluation.intervals import Clusters
from deepfake_ray.evaluation.ranking import Ranking
from deepfake_ray.models.scores import Threshold, is_predicted_fake
from deepfake_ray.schema import CLASSES, FAKE, REAL

SMALL = 50
"""A slice with fewer images of a class that it is judged by is marked: its figures say little."""
SIDES = (64, 128, 256, 512, 1024)
"""Where the buckets of the shorter side begin, in pixels."""
QUALITIES = (50, 70, 85, 95)
"""Where the buckets of the estimated JPEG quality begin."""

COLUMNS = ["source", "format", "width", "height", "jpeg_quality", "split"]


def figures_by_slice(
    scored: pa.Table, labels: NDArray[np.int64], logits: NDArray[np.float32], at: Threshold, clusters: Clusters
) -> list[dict[str, Any]]:
    """Figures of each slice, at one threshold.

    A source is judged by its fakes and by its own reals; one without reals by all reals. The other slices are judged by
    what is in them. Dimensions in which all images are the same are left out.

    Args:
        scored: the rows, with `COLUMNS`.
        labels: int (N,).
        logits: float (N,).
        at: the threshold.
        clusters: of the N images.

    Returns:
        Of each slice: by, value, num_real, num_fake (of its own), reals (own or all), small; recall_real, recall_fake
        and roc_auc (None without such images), and of the first two the intervals (`intervals.proportion`).
    """
    found = []
    for by, values in _dimensions(scored):
        codes, found_names = pd.factorize(np.array(values, object))
        names = list(found_names)
        known = sorted(names, key=_by_number)
        if len(known) < (1 if by == "source" else 2):
            continue
        for value in known:
            rows = np.asarray(codes == names.index(value))
            found.append({"by": by, "value": value, **_figures(rows, by, labels, logits, at, clusters)})
    return found


def _figures(
    rows: NDArray[np.bool_],
    by: str,
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    at: Threshold,
    clusters: Clusters,
) -> dict[str, Any]:
    own = {label: int(np.sum(rows & (labels == index))) for index, label in enumerate(CLASSES)}
    borrows = by == "source" and not own["real"]
    judged = rows | (labels == REAL) if borrows else rows
    fake = is_predicted_fake(logits, at)
    figures: dict[str, Any] = {f"num_{label}": number for label, number in own.items()}
    figures["reals"] = "all" if borrows else "own"
    numbers = [int(np.sum(judged & (labels == index))) for index in (REAL, FAKE)]
    figures["small"] = min(numbers) < SMALL
    for index, label in enumerate(CLASSES):
        among, right = judged & (labels == index), fake == bool(index)
        figures[f"recall_{label}"] = float(right[among].mean()) if numbers[index] else None
        figures[f"recall_{label}_interval"] = intervals.proportion(right, clusters, among)
    ranking = Ranking(labels[judged], logits[judged], 1.0).figures() if min(numbers) else {"roc_auc": None}
    return {**figures, "roc_auc": ranking["roc_auc"]}


def _dimensions(scored: pa.Table) -> Iterator[tuple[str, list[str | None]]]:
    columns = {name: scored[name].to_pylist() for name in COLUMNS}
    yield "source", columns["source"]
    yield "format", columns["format"]
    sides = [None if w is None else min(w, h) for w, h in zip(columns["width"], columns["height"], strict=True)]
    yield "short side", [_bucket(side, SIDES, " px") for side in sides]
    yield "JPEG quality", [_bucket(quality, QUALITIES, "") for quality in columns["jpeg_quality"]]
    yield "split", columns["split"]


def _bucket(value: int | None, starts: tuple[int, ...], unit: str) -> str | None:
    if value is None:
        return None
    below = [start for start in starts if start <= value]
    if not below:
        return f"under {starts[0]}{unit}"
    above = starts[len(below) : len(below) + 1]
    return f"{below[-1]} to {above[0] - 1}{unit}" if above else f"{below[-1]}{unit} or more"


def _by_number(value: str) -> tuple[int, str]:
    """Buckets in the order of their numbers; names by letter."""
    first, _, _ = value.removeprefix("under ").strip().partition(" ")
    if not first.isdecimal():  # names may be empty, or of digits that are no numbers, such as a square's
        return 0, value
    return int(first) - value.startswith("under"), value
