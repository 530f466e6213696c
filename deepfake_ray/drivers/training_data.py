"""The images that a training run is made of: looked at, and without leaks where that is asked for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deepfake_ray import schema
from deepfake_ray.config import TrainConfig
from deepfake_ray.console import say
from deepfake_ray.data import audit, leakage
from deepfake_ray.data.labels import Labelled
from deepfake_ray.data.manifest import numbered
from deepfake_ray.drivers.file_facts import image_facts
from deepfake_ray.errors import UserError
from deepfake_ray.images.decode import Limits
from deepfake_ray.storage import files

AUDIT = "audit.json"
SIZE_SAMPLE = 64
"""Training images whose size decides the model's."""


def look_at_data(images: Labelled) -> dict[str, Any]:
    """Say what there is to train on; returns `audit.audit_manifest`.

    Raises:
        UserError: the training or the validation split lacks a class.
    """
    findings = audit.audit_manifest(images.table)
    counts = findings["num_images"]
    for needed in (schema.TRAIN, schema.VALIDATION):
        if needed not in counts:
            raise UserError(
                f"Training needs a {needed} split: the data has {', '.join(counts)}; rename a folder, or give images "
                "without split folders and let --split-by auto make them."
            )
        if not all(counts[needed].values()):
            raise UserError(
                f"Training needs images of both classes in {needed}: it has {counts[needed]['real']} real and "
                f"{counts[needed]['fake']} fake; add the other class, or give images without split folders."
            )
    parts = [f"{name} {by['real']:,} real + {by['fake']:,} fake" for name, by in counts.items()]
    say(f"images: {'; '.join(parts)}")
    if images.other_files:
        say(f"{len(images.other_files):,} other files are no images and are left out, such as {images.other_files[0]}")
    return findings


def look_at_files(images: Labelled, facts: pa.Table, config: TrainConfig) -> tuple[Labelled, pa.Table, dict[str, Any]]:
    """Look at what is in the files, and leave out or refuse leaks, as `--leaks` has it.

    Args:
        images: as they were listed.
        facts: of the same rows, `schema.FACTS`.
        config: of the run.

    Returns:
        The images to train on, their facts, and audit.json.

    Raises:
        UserError: an image is in two splits or classes; or too little is left.
    """
    found = audit.duplicates(images.table, facts)
    leaks = (
        f"{found['num_across_splits']:,} images are in two splits and {found['num_across_classes']:,} in two classes"
    )
    warnings = []
    dropped: list[dict[str, Any]] = []
    if found["examples"]:
        if config.leaks == "error":
            raise UserError(
                f"An image must not be in two splits or two classes: {leaks}, with the same bytes, such as "
                f"{' and '.join(found['examples'][0][:2])}; remove them, or add --leaks drop, which leaves them out of "
                "training (--leaks allow or --allow-leaks trains on them)."
            )
        if config.leaks == "drop":
            dropped = audit.find_leaking_images(images.table, facts)
            say(f"{leaks}: --leaks drop leaves out {len(dropped):,} of {len(images.table):,} files; see audit.json")
        else:
            warnings.append(f"{leaks}: figures on them flatter the model")
    images, kept = without(images, dropped)
    facts = facts.filter(kept)
    findings = _look_at_rest(images, len(dropped)) if dropped else audit.audit_manifest(images.table)
    auc = audit.zero_pixel_auc(images.table, facts, config.seed)
    given_up = _given_up(images.table, facts)
    if given_up:
        uri, reason = next(iter(given_up.items()))
        warnings.append(f"{len(given_up):,} images are not decoded again and count as unreadable: {uri}: {reason}")
    if auc is not None and auc > audit.SHORTCUT_AUC and not config.reencode:
        warnings.append(
            f"the files alone (bytes, size, format, JPEG quality), without a pixel, tell the classes apart with an AUC "
            f"of {auc:.3f}: the model may learn that instead of the pictures; --reencode sends both through one JPEG"
        )
    return (
        images,
        facts,
        {
            **findings,
            "num_repeated_uris": images.num_repeated_uris,
            "duplicates": found,
            "dropped": dropped,
            "zero_pixel_auc": auc,
            "given_up": given_up,
            "warnings": findings["warnings"] + warnings,
        },
    )


def _look_at_rest(images: Labelled, num_dropped: int) -> dict[str, Any]:
    try:
        return look_at_data(images)
    except UserError as error:
        raise UserError(
            f"What --leaks drop leaves must be enough to train on, and without {num_dropped:,} files that are in two "
            f"splits or classes it is not; remove copies from test, or add images. {error}"
        ) from error


def restore_images(images: Labelled, findings: dict[str, Any]) -> tuple[Labelled, dict[str, Any]]:
    """The images that an unfinished run trains on, which were audited when it began; and their counts."""
    images, _ = without(images, findings.get("dropped", ()))
    return images, {**audit.audit_manifest(images.table), "given_up": findings.get("given_up", {})}


def drop_leaks(images: Labelled, config: TrainConfig, output: str) -> Labelled:
    """What several runs that must agree begin with: without leaks, on `--leaks drop`; OUTPUT/audit.json lists them."""
    place = files.join(output, AUDIT)
    if config.leaks != "drop":
        return images
    if config.resume and files.exists(place):
        return restore_images(images, files.read_json(place))[0]
    limits = Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
    left, _, findings = look_at_files(images, image_facts(images.table["uri"], limits), config)
    files.write_json(place, findings)
    return left


def without(images: Labelled, dropped: Sequence[dict[str, Any]]) -> tuple[Labelled, pa.Array]:
    """The images that are left, renumbered, and which of them these are."""
    uris = pa.array([one["uri"] for one in dropped], pa.string())
    kept = pc.invert(pc.is_in(images.table["uri"], value_set=uris)).combine_chunks()
    return replace(images, table=numbered(images.table.filter(kept))), kept


def _given_up(rows: pa.Table, facts: pa.Table) -> dict[str, str]:
    """Images on which the decoder crashed or hung, and the error that they have in each epoch: URI -> why."""
    is_given_up = facts["given_up"].is_valid()
    uris, reasons = rows["uri"].filter(is_given_up), facts["given_up"].filter(is_given_up)
    return dict(zip(uris.to_pylist(), reasons.to_pylist(), strict=True))


def median_short_side(rows: pa.Table, facts: pa.Table) -> int:
    """Of some training images spread over the manifest, in pixels; unreadable ones are passed over, training counts
    them.

    Raises:
        UserError: none of them is readable.
    """
    is_train = pc.equal(rows["split"], schema.TRAIN)
    uris, sizes = rows["uri"].filter(is_train), facts.select(["width", "height"]).filter(is_train)
    looked_at = pa.array(np.linspace(0, len(sizes) - 1, min(SIZE_SAMPLE, len(sizes))).astype(np.int64))
    sides = pc.min_element_wise(*sizes.take(looked_at).columns, skip_nulls=False).drop_null()
    if not len(sides):
        raise UserError(
            f"The training images must be readable: none of {len(looked_at)} that were looked at is, such as "
            f"{uris[0]}; check them."
        )
    return int(np.median(sides.to_numpy()))


def seen_in_training(rows: pa.Table, facts: pa.Table) -> pa.Table:
    """`leakage.SCHEMA` of the rows that the model is trained and tuned on."""
    columns = [rows["uri"], rows["split"], facts["sha256"], facts["phash"], facts["num_bytes"]]
    seen = pa.table(columns, schema=leakage.SCHEMA)
    return seen.filter(pc.is_in(seen["split"], pa.array([schema.TRAIN, schema.VALIDATION])))
