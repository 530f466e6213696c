"""What the names of the folders above an image say: its class, its split and its source. Knows names, and no files.

A name that speaks of a split without being one that is known is never taken for a source: images of a test set that
are split anew would be trained on without a word.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from deepfake_ray import schema
from deepfake_ray.schema import FAKE_NAMES, REAL_NAMES, SPLIT_NAMES

_IMAGES = frozenset(
    {"image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "sample", "samples"}
    | {"face", "faces", "frame", "frames"}
)
_FILLERS = _IMAGES | {"set", "sets", "data", "dataset", "split", "splits", "part", "folder", "subset"}
"""Beside the word for a split they change nothing: `train_images`, `test set`, `val2017`."""
_SPLIT_WORDS = dict(SPLIT_NAMES) | {word + filler: split for word, split in SPLIT_NAMES.items() for filler in _FILLERS}
"""With what is written in one: `trainset`, `testdata`."""
_ODD_WORDS = frozenset(
    {"holdout", "heldout", "fold", "folds", "kfold", "trainval", "traintest", "trainvaltest", "testval"}
    | {"tests", "evals", "devtest", "testdev"}
)
"""They speak of a split, and do not say which of the three."""
_ODD_PAIRS = frozenset({("hold", "out"), ("held", "out"), ("k", "fold")})
_CLASS_WORDS = {
    word: label
    for names, label in ((REAL_NAMES, schema.REAL), (FAKE_NAMES, schema.FAKE))
    for name in names
    for word in (name.split("_")[-1], f"{name.split('_')[-1]}s")
}
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_TOKEN = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True)
class Reading:
    """What a path of folders says."""

    label: str | None = None
    split: str | None = None
    source: str | None = None
    """The folders that name neither a class nor a split."""
    classes: tuple[str, ...] = ()
    """The folders that were taken for a class."""
    splits: tuple[str, ...] = ()
    odd_label: str = ""
    """Why the class cannot be told, if it cannot."""
    odd_split: str = ""


@lru_cache(maxsize=4096)
def read(path: str) -> Reading:
    """What the folders of a relative path (without the file's name) say, in any order and depth."""
    names = path.split("/") if path else []
    labels = {name: label for name in names if (label := label_named(name))}
    splits = {name: split for name in names if name not in labels and (split := split_named(name))}
    rest = [name for name in names if name not in labels and name not in splits]
    unknown = [name for name in rest if _speaks_of_split(name)]
    label = next(iter(labels.values()), None)
    nearly = {name: near for name in rest if label and (near := _nearly_label(name)) not in (None, label)}
    return Reading(
        label=label,
        split=next(iter(splits.values()), None),
        source="/".join(rest) or None,
        classes=tuple(labels),
        splits=tuple(splits),
        odd_label=_contradiction(labels | nearly),
        odd_split=f"{unknown[0]!r} is no split that is known" if unknown else _contradiction(splits),
    )


def label_named(name: str) -> str | None:
    """The class of that name, in any letter case and with any separators."""
    key = "_".join(re.findall(r"[^\W_]+", name.lower()))
    if key in REAL_NAMES or key in FAKE_NAMES:
        return schema.CLASSES[schema.FAKE if key in FAKE_NAMES else schema.REAL]
    return None


def split_named(name: str) -> str | None:
    """The split of that name: `train`, `Test-Data`, `valset`, `training_images`; None for any other."""
    for tokens in _tokens(name):
        words = [token for token in tokens if token not in _FILLERS and not token.isdigit()]
        found = {_SPLIT_WORDS.get(word) for word in words}
        if len(found) == 1 and None not in found:
            return found.pop()
    return None


def _speaks_of_split(name: str) -> bool:
    """Whether a word in it is one for a split. Words, not letters: `latest` and `contest` speak of none."""
    return any(
        any(token in _SPLIT_WORDS or token in _ODD_WORDS for token in tokens)
        or any(pair in _ODD_PAIRS for pair in pairwise(tokens))
        or ("split" in tokens and all(token == "split" or token.isdigit() for token in tokens) and len(tokens) > 1)
        for tokens in _tokens(name)
    )


def _nearly_label(name: str) -> str | None:
    """The class that a name means which is not known as one: `fakes`, `Real Images`; it must not contradict another."""
    for tokens in _tokens(name):
        labels = {_CLASS_WORDS.get(token) for token in tokens if token not in _IMAGES and not token.isdigit()}
        if len(labels) == 1 and (label := labels.pop()) is not None:
            return schema.CLASSES[label]
    return None


def _tokens(name: str) -> tuple[list[str], list[str]]:
    """The words of a name in lower case: cut at separators and digits; and at capital letters, too."""
    return _TOKEN.findall(name.lower()), _TOKEN.findall(_CAPITAL.sub(" ", name).lower())


def _contradiction(meanings: dict[str, str]) -> str:
    if len(set(meanings.values())) < 2:
        return ""
    return " and ".join(f"{name!r} ({meaning})" for name, meaning in meanings.items()) + " contradict each other"


def summary(readings: Sequence[Reading], most: int = 5) -> str:
    """What was taken for what, in a line: `training = train, testing = test; real = real; source: sd14, biggan`."""
    classes: dict[str, str | None] = {}
    splits: dict[str, str | None] = {}
    sources: dict[str, None] = {}
    for reading in {id(reading): reading for reading in readings}.values():  # images of a folder share one
        classes |= dict.fromkeys(reading.classes, reading.label)
        splits |= dict.fromkeys(reading.splits, reading.split)
        if reading.source is not None:
            sources[reading.source] = None
    parts = [
        f"{kind} {_first([f'{name} = {meaning}' for name, meaning in found.items()], most)}"
        for kind, found in (("split", splits), ("class", classes))
        if found
    ]
    if sources:
        parts.append(f"source {_first(list(sources), most)}")
    return "; ".join(parts)


def _first(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
