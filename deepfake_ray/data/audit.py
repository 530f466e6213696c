"""What is wrong with a labelled data set before any model sees it: imbalance, leaks, files that give the class away."""

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepfake_ray import schema
from deepfake_ray.data import leakage, manifest

SHORTCUT_AUC = 0.6
"""Warn when the files alone tell the classes apart better than this."""
MAX_IMAGES_FOR_SHORTCUT = 20_000
MIN_IMAGES_FOR_SHORTCUT = 50
"""Of each class; fewer give an AUC that means nothing."""
EXAMPLES = 20

IMBALANCE = 4.0
"""Warn when one class of a split has more than this many times the images of the other."""


def audit_manifest(table: pa.Table) -> dict[str, Any]:
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


def duplicates(table: pa.Table, facts: pa.Table) -> dict[str, Any]:
    """Images whose bytes are the same in two splits or in two classes. Files that are no images do not count.

    Args:
        table: rows of a manifest, with label and split.
        facts: of the same rows, `schema.FACTS`.

    Returns:
        `num_across_splits`, `num_across_classes` (how many different images) and `examples`, of up to 20 the places
        of each.
    """
    frame = _repeated(table, facts)
    number = frame.groupby("sha256", sort=False)[["label", "split"]].nunique()
    leaking = number[(number > 1).any(axis=1)].index
    places = frame[frame.sha256.isin(leaking[:EXAMPLES])].groupby("sha256", sort=False)["uri"].apply(list)
    return {
        "num_across_splits": int((number.split > 1).sum()),
        "num_across_classes": int((number.label > 1).sum()),
        "examples": places.tolist(),
    }


def _repeated(table: pa.Table, facts: pa.Table) -> pd.DataFrame:
    """The rows whose bytes other rows have, too: uri, label, split, sha256, indexed by their position."""
    frame = pd.DataFrame({name: table[name].to_pylist() for name in ("uri", "label", "split")})
    frame["sha256"] = facts["sha256"].to_pylist()
    frame = frame[[value is not None for value in facts["format"].to_pylist()]]
    return frame[frame.duplicated("sha256", keep=False)]


def find_leaking_images(table: pa.Table, facts: pa.Table) -> list[dict[str, Any]]:
    """What is to be left out, so that no image is in two splits or in two classes.

    Of an image that is in several splits those rows stay that are in test, else in validation, whatever their number;
    of one that is in both classes none does: one of its labels is wrong.

    Args:
        table: rows of a manifest, with label and split.
        facts: of the same rows, `schema.FACTS`.

    Returns:
        Of each row to leave out, in order: uri, split, label, reason, and kept_uri (None: nothing of it is kept).
    """
    frame = _repeated(table, facts)
    frame["rank"] = frame.split.map(schema.SPLITS.index)
    by_image = frame.groupby("sha256", sort=False)
    in_both = by_image.label.transform("nunique") > 1
    last = by_image["rank"].transform("max")
    kept = frame[frame["rank"] == last].groupby("sha256").uri.first()
    leaking = frame[in_both | (frame["rank"] < last)].sort_index()
    return [
        {
            "uri": row.uri,
            "split": row.split,
            "label": row.label,
            "reason": "in both classes" if both else f"in {schema.SPLITS[rank]}, too",
            "kept_uri": None if both else kept[row.sha256],
        }
        for row, both, rank in zip(leaking.itertuples(), in_both[leaking.index], last[leaking.index], strict=True)
    ]


def zero_pixel_auc(table: pa.Table, facts: pa.Table, seed: int = 0) -> float | None:
    """How well the files alone, without a pixel, tell the classes apart: ROC AUC, .5 being chance.

    A logistic model on bytes, width, height, bytes per pixel, format and estimated JPEG quality, cross-validated
    over five folds on at most 20,000 images; None for fewer than 50 of a class.
    """
    known = np.array([value is not None for value in facts["format"].to_pylist()], bool)
    rows = np.flatnonzero(known)
    if len(rows) > MAX_IMAGES_FOR_SHORTCUT:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_IMAGES_FOR_SHORTCUT, replace=False))
    frame = facts.take(pa.array(rows)).to_pandas()
    labels = np.array(table["label"].take(pa.array(rows)).to_pylist()) == schema.CLASSES[schema.FAKE]
    if min(labels.sum(), (~labels).sum()) < MIN_IMAGES_FOR_SHORTCUT:
        return None
    pixels = frame.width.astype(float) * frame.height
    features = pd.DataFrame(
        {
            "bytes": np.log(frame.num_bytes.clip(lower=1)),
            "width": np.log(frame.width.clip(lower=1)),
            "height": np.log(frame.height.clip(lower=1)),
            "bytes_per_pixel": np.log(frame.num_bytes.clip(lower=1) / pixels.clip(lower=1)),
            "jpeg_quality": frame.jpeg_quality.fillna(0),
        }
    )
    features = pd.concat([features, pd.get_dummies(frame.format, dtype=float)], axis=1)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, features.to_numpy(), labels, cv=folds, method="decision_function")
    return float(roc_auc_score(labels, scores))


def audit_evaluation(
    scored: pa.Table, trained: pa.Table | None, facts: pa.Table | None, seed: int = 0
) -> dict[str, Any]:
    """Look at images that a model is judged by.

    Args:
        scored: rows of predictions with status ok, all with a true label.
        trained: what the model was trained on, `leakage.SCHEMA`; None: it is not known.
        facts: `schema.FACTS` of the scored rows; None where `trained` is.
        seed: of a draw among many images.

    Returns:
        `zero_pixel_auc`, `duplicates` (see there), `leaks` (`leakage.find_leaks`; None: not known) and `warnings`, a
        sentence each.
    """
    table = pa.table({"uri": scored["uri"], "label": scored["true_label"], "split": scored["split"]})
    auc = zero_pixel_auc(table, scored, seed)
    repeated = duplicates(table, scored)
    leaks = None
    warnings = []
    if auc is not None and auc > SHORTCUT_AUC:
        warnings.append(
            f"The files alone (bytes, size, format, JPEG quality), without a pixel, tell real from fake with an AUC of "
            f"{auc:.3f}: a model may know the files instead of the pictures. Re-save both classes alike and compare."
        )
    if repeated["num_across_classes"]:
        warnings.append(f"{repeated['num_across_classes']:,} images are in both classes, with the same bytes.")
    if trained is not None and facts is not None:
        tested = pa.table({"uri": scored["uri"], "sha256": scored["sha256"], "phash": facts["phash"]})
        leaks = leakage.find_leaks(tested, trained, EXAMPLES)
        number = leaks["num_exact"] + leaks["num_near"]
        if number:
            warnings.append(
                f"{number:,} of {len(scored):,} images were in the model's training data ({leaks['num_exact']:,} with "
                f"the same bytes, {leaks['num_near']:,} that look nearly the same), such as "
                f"{leaks['examples'][0]['uri']}: figures on them flatter the model."
            )
    return {"zero_pixel_auc": auc, "duplicates": repeated, "leaks": leaks, "warnings": warnings}
