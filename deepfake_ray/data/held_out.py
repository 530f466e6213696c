"""Which images of a place without split folders a model is judged by: all that it has not seen. Knows no Ray."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deepfake_ray import schema
from deepfake_ray.data.labels import Labelled, require_both_in_each, select_split, split_as
from deepfake_ray.errors import UserError

Hashes = Callable[[pa.ChunkedArray], pa.ChunkedArray]
"""sha256 of the bytes at each of some URIs, null where they cannot be read."""


def select_held_out(
    images: Labelled, trained: pa.Table | None, provenance: dict[str, Any], hashes: Hashes
) -> tuple[Labelled, str]:
    """The images to evaluate on, and a line that says which these are.

    All of them, where none is among those that the model was trained or tuned on: then `split` is null. Where some
    are, the test split of the training: the same hash over the same groups, less what it was trained on; where the
    training had its splits from a table or from folders and not from that hash, all that it was not trained on. Where
    nobody knows what it was trained on, the tenth that a training on this place would have left for testing.

    Args:
        images: labelled, their splits made by hash.
        trained: what the model was trained and tuned on, `leakage.SCHEMA`; None: it is not known.
        provenance: of the bundle: where it was trained, and how.
        hashes: is asked of images whose URIs and sizes do not tell.

    Raises:
        UserError: the test split is empty, or of one class.
    """
    number = len(images.table)
    if trained is None:
        chosen = _test_split(images, np.zeros(number, bool))
        return chosen, (
            f"evaluating {len(chosen.table):,} of {number:,} images, a test split made by hash: {images.place} has no "
            "split folders, and the model does not say what it was trained on; --split all evaluates all of them"
        )
    seen = _seen(images.table, trained, hashes)
    if not seen.any():
        table = images.table.set_column(
            images.table.column_names.index("split"), schema.MANIFEST.field("split"), pa.nulls(number, pa.string())
        )
        return replace(images, table=table), (
            f"evaluating all {number:,} images: {images.place} has no split folders, and none of its images is among "
            f"the {len(trained):,} that the model was trained and tuned on"
        )
    place, grouped, regex = images.place, "", None
    if not images.table["group"].is_valid().to_numpy().any():
        regex = provenance.get("config", {}).get("group_regex")
        grouped = f", with its --group-regex {regex!r}" if regex else ""
    by_uri = pc.any(pc.is_in(images.table["uri"], value_set=trained["uri"].combine_chunks())).as_py()
    root = provenance.get("data", {}).get("place", place) if by_uri else place
    as_hashed = split_as(images, root, regex)
    if pc.any(pc.equal(as_hashed.table["split"].filter(pa.array(seen)), schema.TEST)).as_py():
        chosen = _test_split(_all_in_test(images), seen)
        return chosen, (
            f"evaluating {len(chosen.table):,} of {number:,} images, all that the model was not trained or tuned on: "
            f"{place} has no split folders, and the training had its splits from elsewhere; --split all evaluates all "
            "of them"
        )
    chosen = _test_split(as_hashed, seen)
    return chosen, (
        f"evaluating {len(chosen.table):,} of {number:,} images, the test split that training made{grouped}: "
        f"{place} has no split folders, and the model was trained or tuned on {seen.sum():,} of its images; "
        "--split all evaluates all of them"
    )


def _all_in_test(images: Labelled) -> Labelled:
    position, field = images.table.column_names.index("split"), schema.MANIFEST.field("split")
    table = images.table.set_column(position, field, pa.array([schema.TEST] * len(images.table)))
    return replace(images, table=table)


def _test_split(images: Labelled, seen: NDArray[np.bool_]) -> Labelled:
    unseen = replace(images, table=images.table.filter(pa.array(~seen)))
    if schema.TEST not in unseen.table["split"].to_pylist():
        raise UserError(
            f"The test split must have images: of the {len(images.table):,} in {images.place}, training left none for "
            "it; give images that the model has not seen, or add --split all."
        )
    chosen = select_split(unseen, schema.TEST, images.place)
    require_both_in_each(chosen.table)
    return chosen


def _seen(table: pa.Table, trained: pa.Table, hashes: Hashes) -> NDArray[np.bool_]:
    """Whether the model was trained or tuned on each image: by its URI, or where none has a URI that is known, by its
    bytes, of which those are read that have the size of a training image.
    """
    by_uri = pc.is_in(table["uri"], value_set=trained["uri"].combine_chunks()).to_numpy()
    if by_uri.any():
        return np.array(by_uri, bool)
    readable = trained.filter(trained["sha256"].is_valid())
    sizes = readable["num_bytes"]
    candidates: NDArray[np.bool_] = np.ones(len(table), bool)
    if not sizes.null_count:
        may_be = pc.or_(table["num_bytes"].is_null(), pc.is_in(table["num_bytes"], value_set=sizes.combine_chunks()))
        candidates = np.array(may_be.to_numpy(), bool)
    seen: NDArray[np.bool_] = np.zeros(len(table), bool)
    if candidates.any():
        found = hashes(table["uri"].filter(pa.array(candidates)))
        known = pc.is_in(found, value_set=readable["sha256"].combine_chunks())
        seen[candidates] = pc.and_(found.is_valid(), known).to_numpy()
    return seen
