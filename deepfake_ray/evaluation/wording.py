"""metrics.json -> words: the lines of a result, and what to be careful about. Knows neither Ray nor torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepfake_ray.evaluation.calibration import MIN_REALS
from deepfake_ray.evaluation.intervals import MIN_CLUSTERS
from deepfake_ray.models.scores import format_p_fake
from deepfake_ray.schema import CLASSES, FAKE, REAL

ONE_SIDED = 0.98
"""Warn when more than this share of the verdicts is the same, while the labels are not."""
GUESSING = 0.5
"""The ROC AUC of a model that knows nothing."""
REVERSED = 0.25
"""Without an interval, an AUC from here down speaks for labels that are the other way round."""

COMPARED = {
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "recall_real": "reals passed",
    "recall_fake": "fakes found",
}
"""What two models are compared by."""


def result_text(result: Mapping[str, Any]) -> str:
    """The result of an evaluation in a few lines: its figures, the comparison, what degradations do."""
    return "\n".join([_of_split(result), *_of_comparison(result), *_of_degradations(result)])


def cautions(result: Mapping[str, Any]) -> list[str]:
    """What the figures of `summary.measure` warn of, a sentence each."""
    return [*_of_classes(result), *_of_clusters(result), *_of_auc(result), *_of_verdicts(result), *_of_promises(result)]


def number(value: float | None, digits: int = 4) -> str:
    """A figure; a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def span(interval: Sequence[float] | None, digits: int = 4) -> str:
    """` (0.1234 to 0.2345)`, or nothing. "To", because a dash before a number is a minus."""
    return f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""


def percent(value: float) -> str:
    """`12.3 %`."""
    return f"{100 * value:.1f} %"


def percent_brackets(interval: Sequence[float] | None) -> str:
    """` (10.1 to 14.8 %)`, or nothing."""
    return f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)" if interval else ""


# --- the result


def _of_split(result: Mapping[str, Any]) -> str:
    at = result["thresholds"][result["verdict_threshold"]]
    figures = {
        "ROC AUC": (result["roc_auc"], result["intervals"]["roc_auc"]),
        "balanced accuracy": (at["balanced_accuracy"], at["intervals"]["balanced_accuracy"]),
        "accuracy": (at["accuracy"], at["intervals"]["accuracy"]),
        "fakes found": (at["recall_fake"], at["intervals"]["recall_fake"]),
        "reals passed": (at["recall_real"], at["intervals"]["recall_real"]),
    }
    known = ", ".join(f"{name} {number(value)}{span(of)}" for name, (value, of) in figures.items() if value is not None)
    return (
        f"{result['split']}: {known}, on {result['num_scored']:,} images ({result['num_real']:,} real, "
        f"{result['num_fake']:,} fake) at {result['verdict_threshold']} (p_fake >= {format_p_fake(at['threshold'])})"
    )


def _of_comparison(result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("comparison")
    if found is None:
        return
    yield f"beside model {found['model_id']}, on the {found['num_images']:,} images of both, each at its own threshold:"
    rows = [("", "this model", "the other", "difference")]
    for key, name in COMPARED.items():
        difference = found["difference"][key]
        value = f"{difference['value']:+.4f}{span(difference['interval'])}"
        rows.append((name, number(found["ours"][key]), number(found["theirs"][key]), value))
    yield from _table(rows, left=(0, 3))
    yield (
        f"  only this model is right on {found['only_ours_right']:,} images, only the other on "
        f"{found['only_theirs_right']:,}: McNemar's test, p = {found['mcnemar_p']:.2g}"
    )


def _of_degradations(result: Mapping[str, Any]) -> Iterator[str]:
    if "degradations" not in result:
        return
    yield "after degradations:"
    rows = [("", "images", "ROC AUC", "balanced accuracy", "verdicts flipped")]
    for of in result["degradations"]:
        figures = (number(of["roc_auc"]), number(of["balanced_accuracy"]), number(of["flipped"]))
        rows.append((of["title"], f"{of['num_images']:,}", *figures))
    yield from _table(rows, left=(0,))


def _table(rows: Sequence[Sequence[str]], left: Sequence[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()


# --- what to be careful about


def _of_classes(result: Mapping[str, Any]) -> Iterator[str]:
    for label, absent in ((REAL, FAKE), (FAKE, REAL)):
        if not result[f"num_{CLASSES[absent]}"]:
            yield (
                f"Only {CLASSES[label]} images: figures of {CLASSES[absent]} ones, and all that need both, such as ROC "
                "AUC and balanced accuracy, are undefined."
            )


def _of_clusters(result: Mapping[str, Any]) -> Iterator[str]:
    """Why there are no intervals."""
    groups = result["num_groups"]
    few = {
        name: (groups or {one: result[f"num_{one}"] for one in CLASSES})[name]
        for name in CLASSES
        if result[f"num_{name}"]
    }
    few = {name: count for name, count in few.items() if count < MIN_CLUSTERS}
    if few:
        counts = " and ".join(f"{count} {'groups of ' if groups else ''}{name}" for name, count in few.items())
        yield (
            f"Fewer than {MIN_CLUSTERS} {'groups' if groups else 'images'} of a class ({counts} images): figures that "
            "depend on it have no interval."
        )


def _of_auc(result: Mapping[str, Any]) -> Iterator[str]:
    auc, interval = result["roc_auc"], result["intervals"]["roc_auc"]
    if auc is None:
        return
    shown = f"ROC AUC {number(auc)}{span(interval)}"
    if interval and interval[0] <= GUESSING <= interval[1]:
        yield f"Not distinguishable from guessing: {shown}; the interval holds {GUESSING}."
    elif interval[1] < GUESSING if interval else auc <= REVERSED:
        yield (
            f"{shown}: real images score higher than fake ones. The labels may be the other way round, here or in "
            "training: look at some images of each class."
        )


def _of_verdicts(result: Mapping[str, Any]) -> Iterator[str]:
    matrix = result["thresholds"][result["verdict_threshold"]]["confusion_matrix"]
    total = result["num_scored"]
    called = [(matrix[REAL][label] + matrix[FAKE][label]) / total for label in (REAL, FAKE)]
    labels = [sum(matrix[label]) / total for label in (REAL, FAKE)]
    if max(called) > ONE_SIDED and max(labels) <= ONE_SIDED:
        side = CLASSES[called.index(max(called))]
        yield (
            f"{max(called):.1%} of the images are called {side}: the model or its threshold does not fit these images."
        )


def _of_promises(result: Mapping[str, Any]) -> Iterator[str]:
    """Thresholds that are to accuse few reals, and here accuse more than chance makes of it."""
    for name, at in result["thresholds"].items():
        interval = at["intervals"]["specificity"]
        if at["max_fpr"] is None or interval is None:
            continue
        low, high = 1 - interval[1], 1 - interval[0]
        if low > at["max_fpr"]:
            rate = percent(1 - at["specificity"]) + percent_brackets((low, high))
            few = ""
            if not at["is_promised"]:
                few = f" It was chosen on {at['num_real']} real validation images; {MIN_REALS[name]} are needed."
            yield (
                f"{name} is to call at most {100 * at['max_fpr']:g} % of real images fake, and calls {rate} of these "
                f"{result['num_real']:,}: do not rely on it for images like these.{few}"
            )
