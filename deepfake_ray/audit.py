"""What is wrong with a labelled data set before any model sees it: imbalance, groups in two splits."""

from collections import defaultdict
from typing import Any

import pyarrow as pa

from deepfake_ray import manifest, schema

IMBALANCE = 4.0
"""Warn when one class of a split has more than this many times the images of the other."""


def audit(table: pa.Table) -> dict[str, Any]:
    """Look at a manifest's labelled rows.

    Returns:
        `num_images` by split and label, `num_images_by_source`, `groups_in_several_splits` (their names), and
        `warnings`, a sentence each.
    """
    counts = manifest.count(table)
    warnings = []
    for split, by_label in counts.items():
        smaller, larger = sorted(by_label.values())
        if larger > IMBALANCE * smaller:
            warnings.append(
                f"{split} is unbalanced ({by_label['real']} real, {by_label['fake']} fake): read balanced accuracy "
                "and AUC, not accuracy"
            )
    splits_of = defaultdict(set)
    sources: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(schema.CLASSES, 0))
    columns = (table[name].to_pylist() for name in ("label", "split", "source", "group"))
    for label, split, source, group in zip(*columns, strict=True):
        if group is not None:
            splits_of[group].add(split)
        if source is not None:
            sources[source][label] += 1
    leaking = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if leaking:
        warnings.append(
            f"{len(leaking)} groups are in more than one split ({', '.join(leaking[:3])}): figures on them flatter "
            "the model"
        )
    return {
        "num_images": counts,
        "num_images_by_source": dict(sorted(sources.items())),
        "groups_in_several_splits": leaking,
        "warnings": warnings,
    }
