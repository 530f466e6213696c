"""Labelled images: classes, splits, sources and groups from folder names, file names or tables."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deepfake_ray import schema
from deepfake_ray.config import EvaluateConfig, QuantizeConfig, TrainConfig
from deepfake_ray.console import say
from deepfake_ray.data import folder_names
from deepfake_ray.data.inventory import is_inventory
from deepfake_ray.data.manifest import Manifest, count, list_images, numbered
from deepfake_ray.data.tables import is_table
from deepfake_ray.errors import UserError
from deepfake_ray.schema import FAKE_NAMES, REAL_NAMES, SPLIT_NAMES
from deepfake_ray.storage import files

log = logging.getLogger(__name__)

EXAMPLES = 3


@dataclass(frozen=True)
class Labelled(Manifest):
    """Labelled images of one place; each has a label and a split."""

    place: str = ""
    splits_made: bool = False
    """The place names no split: they were made here, by hash."""

    @property
    def keys(self) -> list[str]:
        """Of each image, what its split is made of: its place below the data, or, in a table, its whole URI."""
        return _keys(self.table, self.place)


def read_labelled(
    data: str,
    *,
    labels: str | None = None,
    group_regex: str | None = None,
    split_by: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    shared_storage: bool = False,
    use_made_splits: bool = True,
    quiet: bool = True,
) -> Labelled:
    """The labelled images of a folder, prefix or table; every row has a label and a split.

    Args:
        data: folder or prefix like `Train|Validation|Test/Fake|Real/...` in any letter case, or a table.
        labels: a table with `uri` and any of `label, split, source, group`, which override the folders'.
        group_regex: searched in the file name; its first group becomes `group`.
        split_by: `auto` makes the splits that are missing, by hash of the group or else of the place in `data`;
            `folder` demands that they are there.
        limit: at most so many images of each split and label together, drawn by `seed`.
        seed: of that draw.
        shared_storage: a table in a bucket may name local paths.
        use_made_splits: splits that are made here must have both classes, and are spoken of.
        quiet: do not say what was taken for what.

    Raises:
        UserError: see the messages.
    """
    data = files.absolute(data)
    manifest = list_images(data, shared_storage=shared_storage)
    table = manifest.table
    keys = _keys(table, data)
    readings: list[folder_names.Reading] = []
    if is_inventory(data) or not is_table(data):
        readings = [folder_names.read(os.path.dirname(_below_bucket(key))) for key in keys]
        for name in ("label", "split", "source"):
            table = _set(table, name, [getattr(reading, name) for reading in readings])
    if not quiet and (summary := folder_names.summary(readings)):
        say(f"folders: {summary}")
    given = None
    if labels is not None:
        given = list_images(labels, shared_storage=shared_storage).table
        table = _override(table, given, quiet=quiet)
    _refuse_odd(readings, keys, table, given, data)
    if group_regex is not None:
        table = _set(table, "group", _groups(table["uri"].to_pylist(), group_regex))
    _require_labels(table, data, keys)
    splits_made = split_by != "folder" and table["split"].null_count == len(table)
    table = _set(table, "split", _splits(table, keys, split_by, quiet=not use_made_splits))
    found = Labelled(table, manifest.other_files, manifest.num_repeated_uris, data, splits_made)
    if limit is not None:
        found = draw(found, limit, seed)
    _require_both(found.table, data)
    if use_made_splits or not splits_made:
        require_both_in_each(found.table)
    return found


def load_labelled(config: TrainConfig | EvaluateConfig | QuantizeConfig) -> Labelled:
    """`read_labelled`, as a job is configured; says what was taken for what."""
    found = read_labelled(
        config.data,
        labels=config.labels,
        group_regex=config.group_regex,
        split_by=config.split_by,
        limit=config.limit,
        seed=config.seed,
        shared_storage=config.shared_storage,
        use_made_splits=not isinstance(config, EvaluateConfig),
        quiet=False,
    )
    if found.num_repeated_uris:
        say(f"{found.num_repeated_uris:,} rows name an image again: each counts once")
    return found


def split_as(images: Labelled, place: str, group_regex: str | None) -> Labelled:
    """The same images with the splits that are made of another `place` that holds them, and of these groups."""
    table = _set(images.table, "split", [None] * len(images.table))
    if group_regex is not None:
        table = _set(table, "group", _groups(table["uri"].to_pylist(), group_regex))
    images = replace(images, table=table, place=place)
    return replace(images, table=_set(table, "split", _splits(table, images.keys, "auto", quiet=True)))


def _keys(table: pa.Table, data: str) -> list[str]:
    return [uri.removeprefix(f"{data}/") for uri in table["uri"].to_pylist()]


def _below_bucket(key: str) -> str:
    """The bucket of an inventory is no folder of the data."""
    return files.split_uri(key)[1] if files.scheme_of(key) else key


def _set(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, schema.MANIFEST.field(name), pa.array(values, pa.string()))


def _override(table: pa.Table, given: pa.Table, *, quiet: bool) -> pa.Table:
    position = {uri: index for index, uri in enumerate(given["uri"].to_pylist())}
    found = [position.get(uri) for uri in table["uri"].to_pylist()]
    if not any(index is not None for index in found):
        raise UserError("labels must name images of the data: no uri is in both; give absolute paths or URIs.")
    others = given["uri"].filter(pc.invert(pc.is_in(given["uri"], value_set=table["uri"].combine_chunks())))
    if len(others) and not quiet:
        say(f"{len(others):,} of {len(given):,} rows of --labels name no image of the data, such as {others[0]}")
    for name in ("label", "split", "source", "group"):
        new, old = given[name].to_pylist(), table[name].to_pylist()
        both = zip(old, found, strict=True)
        table = _set(table, name, [(new[i] or value) if i is not None else value for value, i in both])
    return table


def _refuse_odd(
    readings: Iterable[folder_names.Reading], keys: Sequence[str], table: pa.Table, given: pa.Table | None, data: str
) -> None:
    """Folders that speak of a class or a split, but do not say which; a table that says it settles it."""
    settled: dict[str, set[str]] = {"label": set(), "split": set()}
    if given is not None:
        for name, uris in settled.items():
            uris.update(given.filter(given[name].is_valid())["uri"].to_pylist())
    odd: dict[str, Counter[str]] = {"label": Counter(), "split": Counter()}
    below = ""
    for reading, key, uri in zip(readings, keys, table["uri"].to_pylist(), strict=False):
        for name, why in (("label", reading.odd_label), ("split", reading.odd_split)):
            if why and uri not in settled[name]:
                odd[name][f"{why} in {os.path.dirname(key)}"] += 1
                below = below or _below_odd(data, os.path.dirname(key))
    for name, word in (("label", "class"), ("split", "split")):
        if odd[name]:
            known = ", ".join(sorted(SPLIT_NAMES if name == "split" else REAL_NAMES | FAKE_NAMES))
            found = "; ".join(f"{why} ({number:,} images)" for why, number in odd[name].most_common(EXAMPLES))
            raise UserError(
                f"A folder's name must say plainly which {word} its images are of: {found}. Known are {known}, in any "
                f"letter case. Rename the folder{below if name == 'split' else ''}, or give --labels TABLE with a "
                f"column {name} for its images."
            )


def _below_odd(data: str, path: str) -> str:
    """The remedy for a whole data set whose own name speaks of a split, as in `CNN_synth_testset/biggan/0_real`."""
    names = path.split("/")
    if not is_inventory(data):
        for number, name in enumerate(names, 1):
            if folder_names.read(name).odd_split:
                place = files.join(data, *names[:number])
                return f", give --data {place} alone (names count from below --data on)"
    return ""


def group_pattern(group_regex: str) -> re.Pattern[str]:
    """What --group-regex says.

    Raises:
        UserError: it is no regular expression, or has no group.
    """
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise UserError(f"group-regex must be a regular expression: {group_regex!r}: {error}; mend it.") from error
    if not pattern.groups:
        raise UserError(f"group-regex must have a (group): got {group_regex!r}; put brackets around the name.")
    return pattern


def _groups(uris: Sequence[str], group_regex: str) -> list[str | None]:
    pattern = group_pattern(group_regex)
    matches = [pattern.search(uri.rsplit("/", 1)[-1]) for uri in uris]
    if not any(matches):
        raise UserError(f"group-regex must match file names: {group_regex!r} matches none of {len(uris)}; mend it.")
    return [match.group(1) if match else None for match in matches]


def _require_labels(table: pa.Table, data: str, keys: Sequence[str]) -> None:
    unlabelled = [key for key, label in zip(keys, table["label"].to_pylist(), strict=True) if label is None]
    if not unlabelled:
        return
    places = Counter(os.path.dirname(key) or "." for key in unlabelled)
    found = ", ".join(f"{name} ({count})" for name, count in places.most_common(5))
    raise UserError(
        f"Each image must lie in a class folder, or have a label: {len(unlabelled)} of {len(table)} images in {data} "
        f"do not, in the folders {found}. Known for real: {', '.join(sorted(REAL_NAMES))}; for fake: "
        f"{', '.join(sorted(FAKE_NAMES))} (any letter case). Rename the folder, or give --labels TABLE."
    )


def _bucket(key: str) -> float:
    """A number in [0, 1) that only the key decides."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _splits(table: pa.Table, keys: Sequence[str], split_by: str, *, quiet: bool) -> list[str]:
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
        if not quiet:
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


def draw(images: Labelled, limit: int, seed: int, *, whole: bool = False) -> Labelled:
    """At most `limit` images of each split (or `whole`, of all), an even share of each label, drawn by hash."""
    table = images.table
    luck = np.array([_bucket(f"{seed}/{key}") for key in images.keys])
    splits = np.array([""] * len(table) if whole else table["split"].to_pylist())
    labels = np.array(table["label"].to_pylist())
    chosen: list[int] = []
    for split in sorted(set(splits)):
        for position, label in enumerate(schema.CLASSES):
            share = (limit + 1 - position) // 2
            rows = np.flatnonzero((splits == split) & (labels == label))
            chosen.extend(rows[np.argsort(luck[rows], kind="stable")[:share]].tolist())
    return replace(images, table=numbered(table.take(pa.array(sorted(chosen), pa.int64()))))


def _require_both(table: pa.Table, data: str) -> None:
    total = Counter(table["label"].to_pylist())
    for label in schema.CLASSES:
        if not total[label]:
            raise UserError(
                f"There must be images of both classes: {data} has {total['real']} real and {total['fake']} fake; "
                f"add a folder of {label} images."
            )


def require_both_in_each(table: pa.Table) -> None:
    """Refuse a split without images of one class.

    Raises:
        UserError: names it.
    """
    for split, by_label in count(table).items():
        for label, number in by_label.items():
            if not number:
                raise UserError(
                    f"Each split must have both classes: {split} would have no {label} image (real "
                    f"{by_label['real']}, fake {by_label['fake']}); add some, or use more images."
                )


def select_split(manifest: Labelled, split: str, data: str) -> Labelled:
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
    return replace(manifest, table=numbered(table))
