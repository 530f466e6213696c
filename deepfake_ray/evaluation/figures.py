"""Numbers and predictions -> figures (PNG). Knows neither Ray nor torch."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from scipy.special import expit
from sklearn import metrics as sk

from deepfake_ray.evaluation.ranking import ECE_BINS
from deepfake_ray.images.corruptions import BLUR, DEGRADATIONS, JPEG, OTHER
from deepfake_ray.models.scores import format_p_fake, p_fake_of
from deepfake_ray.schema import CLASSES, FAKE, REAL

REAL_COLOUR, FAKE_COLOUR, NEUTRAL = "#2a78b5", "#c8553d", "#666666"
DPI = 120


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return data.getvalue()


def _axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def training_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Loss and validation AUC by epoch."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name, label, colour in (
        ("train_loss", "training", NEUTRAL),
        ("val_loss", "validation", FAKE_COLOUR),
    ):
        left.plot(epochs, [row[name] for row in history], "o-", ms=4, color=colour, label=label)
    for name, label, colour in (
        ("val_auc", "AUC", FAKE_COLOUR),
        ("val_accuracy", "accuracy", REAL_COLOUR),
    ):
        right.plot(epochs, [row[name] for row in history], "o-", ms=4, color=colour, label=f"validation {label}")
    left.set_ylabel("cross-entropy")
    right.set_ylabel("share")
    left.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def confusion_matrix(matrix: Sequence[Sequence[int]], title: str) -> bytes:
    """Counts, and shares of each true class as shades."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure, axes = _axes(title, "predicted", "true")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks([0, 1], CLASSES)
    axes.set_yticks([0, 1], CLASSES, rotation=90, va="center")
    axes.tick_params(length=0)
    for row in (REAL, FAKE):
        for column in (REAL, FAKE):
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}" + (f"\n{shares[row, column]:.1%}" if counts[row].any() else ""),
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.55 else "black",
            )
    return _png(figure)


def roc_curve(labels: NDArray[np.int64], scores: NDArray[np.float32], auc: float) -> bytes:
    """Receiver operating characteristic; fake is positive."""
    fpr, tpr, _ = sk.roc_curve(labels, scores)
    figure, axes = _axes(f"ROC, AUC {auc:.4f}", "false-positive rate (real called fake)", "true-positive rate")
    axes.plot([0, 1], [0, 1], ls=":", color=NEUTRAL, lw=1)
    axes.plot(fpr, tpr, color=FAKE_COLOUR)
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    axes.grid(alpha=0.25)
    return _png(figure)


def precision_recall_curve(labels: NDArray[np.int64], scores: NDArray[np.float32], average: float) -> bytes:
    """Precision over recall for fake; the dotted line is what chance has."""
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    figure, axes = _axes(f"Precision-recall, average precision {average:.4f}", "recall of fake", "precision of fake")
    axes.axhline(float(np.mean(labels == FAKE)), ls=":", color=NEUTRAL, lw=1)
    axes.step(recall, precision, where="post", color=FAKE_COLOUR)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    axes.grid(alpha=0.25)
    return _png(figure)


STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
"""Of lines: as many as a bundle has thresholds, and one that was given."""


def score_histogram(labels: NDArray[np.int64], p_fake: NDArray[np.float64], thresholds: Mapping[str, float]) -> bytes:
    """p_fake of the real and of the fake images, and where the thresholds lie."""
    figure, axes = _axes("Scores", "p_fake", "images")
    bins = np.linspace(0, 1, 41)
    for index, colour in ((REAL, REAL_COLOUR), (FAKE, FAKE_COLOUR)):
        axes.hist(p_fake[labels == index], bins=bins, color=colour, alpha=0.55, label=CLASSES[index])
    for (name, value), style in zip(thresholds.items(), itertools.cycle(STYLES)):
        axes.axvline(value, color=NEUTRAL, ls=style, lw=1, label=f"{name} {format_p_fake(value, 3)}")
    axes.set_xlim(0, 1)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)  # over the axes it hides thresholds
    return _png(figure)


MIN_IN_BIN = 10
"""Bins of the calibration figure with fewer images are left out: their shares are chance."""


def reliability(labels: NDArray[np.int64], logits: NDArray[np.float32], temperature: float) -> bytes:
    """How often images of a score are fake, before and after the temperature; the diagonal is a calibrated model."""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.set_title("Calibration", fontsize=11)
    axes.plot([0, 1], [0, 1], ls=":", color=NEUTRAL, lw=1)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    for name, t, style in (
        ("before the temperature", 1.0, "o--"),
        (f"after (T = {temperature:.2f})", temperature, "o-"),
    ):
        p_fake = expit(logits / t)
        bins = np.clip(np.digitize(p_fake, edges) - 1, 0, ECE_BINS - 1)
        counts = np.bincount(bins, minlength=ECE_BINS)
        shown = [one for one in range(ECE_BINS) if counts[one] >= MIN_IN_BIN]
        x, y = ([values[bins == one].mean() for one in shown] for values in (p_fake, labels))
        axes.plot(x, y, style, ms=4, color=NEUTRAL if t == 1.0 else FAKE_COLOUR, label=name)
    below.bar(edges[:-1], counts, width=1 / ECE_BINS, align="edge", color=FAKE_COLOUR, alpha=0.5)
    below.set(xlabel="p_fake (mean of a bin)", ylabel="images", yscale="log")
    below.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), ylabel="share that is fake")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    for each in (axes, below):
        each.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def degradation_curve(rows: Sequence[Mapping[str, Any]], kind: str) -> bytes:
    """ROC AUC, balanced accuracy and the share of flipped verdicts over the steps of one kind of degradation."""
    clean, *others = rows
    by_name = {row["name"]: row for row in others}
    points = [(one, by_name[name]) for name, one in DEGRADATIONS.items() if one.kind == kind and name in by_name]
    figure, axes = _axes("Other degradations" if kind == OTHER else f"Degradation: {kind}", "", "share")
    for key, label, colour in (
        ("roc_auc", "ROC AUC", FAKE_COLOUR),
        ("balanced_accuracy", "balanced accuracy", REAL_COLOUR),
        ("flipped", "verdicts flipped", NEUTRAL),
    ):
        values = [np.nan if row[key] is None else row[key] for row in (clean, *(row for _, row in points))]
        axes.plot(range(len(values)), values, "o" if kind == OTHER else "o-", ms=4, color=colour, label=label)
    names = ["as it is", *(one.title if kind == OTHER else f"{one.strength:g}" for one, _ in points)]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return _png(figure)


def draw_evaluation(
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    result: Mapping[str, Any],
    temperature: float,
) -> dict[str, bytes]:
    """The evaluation's figures: file name (without `.png`) -> PNG.

    Args:
        labels: int (N,).
        logits: float32 (N,), which rank the images.
        result: as `evaluation.evaluate` writes to metrics.json.
        temperature: of the bundle.
    """
    called = result["thresholds"][result["verdict_threshold"]]
    title = f"Confusion matrix at p_fake >= {format_p_fake(called['threshold'])} ({result['verdict_threshold']})"
    drawn = {"confusion_matrix": confusion_matrix(called["confusion_matrix"], title)}
    if result["roc_auc"] is not None:
        drawn["roc"] = roc_curve(labels, logits, result["roc_auc"])
        drawn["precision_recall"] = precision_recall_curve(labels, logits, result["average_precision"])
    shown = {name: at["threshold"] for name, at in result["thresholds"].items()}
    drawn["score_histogram"] = score_histogram(labels, p_fake_of(logits, temperature), shown)
    if result["roc_auc"] is not None:  # of one class, the share that is fake is what it is
        drawn["reliability"] = reliability(labels, logits, temperature)
    if "degradations" in result:
        for name, kind in (("jpeg", JPEG), ("blur", BLUR), ("other", OTHER)):
            drawn[f"degradation_{name}"] = degradation_curve(result["degradations"], kind)
    return drawn
