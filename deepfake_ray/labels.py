"""Labelled images: classes, splits, sources and groups from folder names, file names or tables."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deepfake_ray import schema, storage
from deepfake_ray.config import EvaluateConfig, QuantizeConfig, TrainConfig
from deepfake_ray.errors import UserError
from deepfake_ray.manifest import Manifest, count, list_images
from deepfake_ray.schema import FAKE_NAMES, REAL_NAMES, SPLIT_NAMES
from deepfake_ray.tables import is_inventory, is_table

log = logging.getLogger(__name__)


def read_labelled(
    data: str,
    *,
    labels: str | None = None,
    group_regex: str | None = None,
    split_by: str = "auto",
    limit: int | None = None,
    seed: int = 0,
) -> Manifest:
    """The labelled images of a folder, prefix or table; every row has a label and a split.

    Args:
        data: folder or prefix like `Train|Validation|Test/Fake|Real/...` in any letter case, or a table.
        labels: a table with `uri` and any of `label, split, source, group`, which override the folders'.
        group_regex: searched in the file name; its first group becomes `group`.
        split_by: `auto` makes the splits that are missing, by hash of the group or else of the place in `data`;
            `folder` demands that they are there.
        limit: at most so many images of each split and label together, drawn by `seed`.
        seed: of that draw.

    Raises:
        UserError: see the messages.
    """
    data = storage.absolute(data)
    manifest = list_images(data)
    table = manifest.table
    keys = [uri.removeprefix(f"{data}/") for uri in table["uri"].to_pylist()]
    if is_inventory(data) or not is_table(data):
        parts = [_parse_folders(key) for key in keys]
        for name in ("label", "split", "source"):
            table = _set(table, name, [part[name] for part in parts])
    if labels is not None:
        table = _override(table, list_images(labels).table)
    if group_regex is not None:
        table = _set(table, "group", _groups(table["uri"].to_pylist(), group_regex))
    _require_labels(table, data, keys)
    table = _set(table, "split", _splits(table, keys, split_by))
    if limit is not None:
        table = _draw(table, keys, limit, seed)
    _require_classes(table, data)
    return Manifest(table, manifest.other_files)


def labelled(config: TrainConfig | EvaluateConfig | QuantizeConfig) -> Manifest:
    """`read_labelled`, as a job is configured."""
    return read_labelled(
        config.data,
        labels=config.labels,
        group_regex=config.group_regex,
        split_by=config.split_by,
        limit=config.limit,
        seed=config.seed,
    )


def _set(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, schema.MANIFEST.field(name), pa.array(values, pa.string()))


def _parse_folders(relative: str) -> dict[str, str | None]:
    """The class, split and source in the folders above a file; the source is what is left of them."""
    label: str | None = None
    split: str | None = None
    source = []
    for folder in relative.split("/")[:-1]:
        name = folder.lower()
        if label is None and name in REAL_NAMES | FAKE_NAMES:
            label = schema.CLASSES[schema.FAKE if name in FAKE_NAMES else schema.REAL]
        elif split is None and name in SPLIT_NAMES:
            split = SPLIT_NAMES[name]
        else:
            source.append(folder)
    return {"label": label, "split": split, "source": "/".join(source) or None}


def _override(table: pa.Table, given: pa.Table) -> pa.Table:
    position = {uri: index for index, uri in enumerate(given["uri"].to_pylist())}
    found = [position.get(uri) for uri in table["uri"].to_pylist()]
    if not any(index is not None for index in found):
        raise UserError("labels must name images of the data: no uri is in both; give absolute paths or URIs.")
    for name in ("label", "split", "source", "group"):
        new, old = given[name].to_pylist(), table[name].to_pylist()
        both = zip(old, found, strict=True)
        table = _set(table, name, [(new[i] or value) if i is not None else value for value, i in both])
    return table


def _groups(uris: Sequence[str], group_regex: str) -> list[str | None]:
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise UserError(f"group-regex must be a regular expression: {group_regex!r}: {error}; mend it.") from error
    if not pattern.groups:
        raise UserError(f"group-regex must have a (group): got {group_regex!r}; put brackets around the name.")
    matches = [pattern.search(uri.rsplit("/", 1)[-1]) for uri in uris]
    if not any(matches):
        raise UserError(f"group-regex must match file names: {group_regex!r} matches none of {len(uris)}; mend it.")
    return [match.group(1) if match else None for match in matches]


def _require_labels(table: pa.Table, data: str, keys: Sequence[str]) -> None:
    unlabelled = [key for key, label in zip(keys, table["label"].to_pylist(), strict=True) if label is None]
    if not unlabelled:
        return
    folders = Counter(os.path.dirname(key) or "." for key in unlabelled)
    found = ", ".join(f"{name} ({count})" for name, count in folders.most_common(5))
    raise UserError(
        f"Each image must lie in a class folder, or have a label: {len(unlabelled)} of {len(table)} images in {data} "
        f"do not, in the folders {found}. Known for real: {', '.join(sorted(REAL_NAMES))}; for fake: "
        f"{', '.join(sorted(FAKE_NAMES))} (any letter case). Rename the folder, or give --labels TABLE."
    )


def _bucket(key: str) -> float:
    """A number in [0, 1) that only the key decides."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _splits(table: pa.Table, keys: Sequence[str], split_by: str) -> list[str]:
    splits: list[str | None] = table["split"].to_pylist()
    groups = table["group"].to_pylist()
    buckets = [_bucket(group or key) for group, key in zip(groups, keys, strict=True)]
    present = set(splits) - {None}
    if split_by == "folder":
        if None in splits:
            raise UserError(
                f"split-by folder needs each image under one of {', '.join(sorted(SPLIT_NAMES))}: "
                f"{splits.count(None)} are not; use --split-by auto."
            )
    elif not present:
        log.info("no split folders: 80/10/10 %% by hash of the %s", "group" if any(groups) else "file's place")
        return [
            schema.TRAIN if bucket < 0.8 else schema.VALIDATION if bucket < 0.9 else schema.TEST for bucket in buckets
        ]
    elif None in splits:
        raise UserError(
            f"Either each image lies under a split folder or none does: {splits.count(None)} of {len(splits)} do "
            f"not; move them under one of {', '.join(sorted(SPLIT_NAMES))}."
        )
    elif schema.TRAIN in present and schema.VALIDATION not in present:
        log.info("no Validation folder: a tenth of Train by hash of the %s", "group" if any(groups) else "place")
        return [
            schema.VALIDATION if split == schema.TRAIN and bucket < 0.1 else str(split)
            for split, bucket in zip(splits, buckets, strict=True)
        ]
    return [str(split) for split in splits]


def _draw(table: pa.Table, keys: Sequence[str], limit: int, seed: int) -> pa.Table:
    """At most `limit` rows of each split, an even share of each label, drawn by hash; the order stays."""
    luck = np.array([_bucket(f"{seed}/{key}") for key in keys])
    splits, labels = np.array(table["split"].to_pylist()), np.array(table["label"].to_pylist())
    chosen: list[int] = []
    for split in sorted(set(splits)):
        for position, label in enumerate(schema.CLASSES):
            share = (limit + 1 - position) // 2
            rows = np.flatnonzero((splits == split) & (labels == label))
            chosen.extend(rows[np.argsort(luck[rows], kind="stable")[:share]].tolist())
    table = table.take(pa.array(sorted(chosen), pa.int64()))
    return table.set_column(0, schema.MANIFEST.field("row"), pa.array(np.arange(len(table))))


def _require_classes(table: pa.Table, data: str) -> None:
    counts = count(table)
    total = {label: sum(split[label] for split in counts.values()) for label in schema.CLASSES}
    for label, number in total.items():
        if not number:
            raise UserError(
                f"There must be images of both classes: {data} has {total['real']} real and {total['fake']} fake; "
                f"add a folder of {label} images."
            )
    for split, by_label in counts.items():
        for label, number in by_label.items():
            if not number:
                raise UserError(
                    f"Each split must have both classes: {split} would have no {label} image (real "
                    f"{by_label['real']}, fake {by_label['fake']}); add some, or use more images."
                )


def of_split(manifest: Manifest, split: str, data: str) -> Manifest:
    """The rows of one split, renumbered; `all` keeps every row.

    Raises:
        UserError: the split has no image.
    """
    if split == "all":
        return manifest
    table = manifest.table.filter(pc.equal(manifest.table["split"], split))
    if not len(table):
        present = ", ".join(count(manifest.table))
        raise UserError(f"The split must have images: {data} has none in {split} (it has {present}); use --split.")
    table = table.set_column(0, schema.MANIFEST.field("row"), pa.array(np.arange(len(table))))
    return Manifest(table, manifest.other_files)
