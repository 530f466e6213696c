"""Numbers and predictions -> figures (PNG) and report.html. Knows neither Ray nor torch."""

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import expit
from sklearn import metrics as sk

from deepfake_ray.ranking import ECE_BINS
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
                f"{counts[row, column]:,}\n{shares[row, column]:.1%}",
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.55 else "black",
            )
    return _png(figure)


def roc_curve(labels: NDArray[np.int64], scores: NDArray[np.float64], auc: float) -> bytes:
    """Receiver operating characteristic; fake is positive."""
    fpr, tpr, _ = sk.roc_curve(labels, scores)
    figure, axes = _axes(f"ROC, AUC {auc:.4f}", "false-positive rate (real called fake)", "true-positive rate")
    axes.plot([0, 1], [0, 1], ls=":", color=NEUTRAL, lw=1)
    axes.plot(fpr, tpr, color=FAKE_COLOUR)
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    axes.grid(alpha=0.25)
    return _png(figure)


def precision_recall_curve(labels: NDArray[np.int64], scores: NDArray[np.float64], average: float) -> bytes:
    """Precision over recall for fake; the dotted line is what chance has."""
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    figure, axes = _axes(f"Precision-recall, average precision {average:.4f}", "recall of fake", "precision of fake")
    axes.axhline(float(np.mean(labels == FAKE)), ls=":", color=NEUTRAL, lw=1)
    axes.step(recall, precision, where="post", color=FAKE_COLOUR)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    axes.grid(alpha=0.25)
    return _png(figure)


def score_histogram(labels: NDArray[np.int64], p_fake: NDArray[np.float64], thresholds: Mapping[str, float]) -> bytes:
    """p_fake of the real and of the fake images, and where the thresholds lie."""
    figure, axes = _axes("Scores", "p_fake", "images")
    bins = np.linspace(0, 1, 41)
    for index, colour in ((REAL, REAL_COLOUR), (FAKE, FAKE_COLOUR)):
        axes.hist(p_fake[labels == index], bins=bins, color=colour, alpha=0.55, label=CLASSES[index])
    for (name, value), style in zip(thresholds.items(), ("-", "--", "-.", ":"), strict=False):
        axes.axvline(value, color=NEUTRAL, ls=style, lw=1, label=f"{name} {value:.3f}")
    axes.set_xlim(0, 1)
    axes.legend(frameon=False, fontsize=8, loc="upper center")
    return _png(figure)


def reliability(labels: NDArray[np.int64], logits: NDArray[np.float64], temperature: float) -> bytes:
    """How often images of a score are fake, before and after the temperature; the diagonal is a calibrated model."""
    figure, axes = _axes("Calibration", "p_fake (mean of a bin)", "share that is fake")
    axes.plot([0, 1], [0, 1], ls=":", color=NEUTRAL, lw=1)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    for name, t, style in (
        ("before the temperature", 1.0, "o--"),
        (f"after (T = {temperature:.2f})", temperature, "o-"),
    ):
        p_fake = expit(logits / t)
        bins = np.clip(np.digitize(p_fake, edges) - 1, 0, ECE_BINS - 1)
        filled = np.unique(bins)
        means = [(p_fake[bins == one].mean(), labels[bins == one].mean()) for one in filled]
        axes.plot(*np.transpose(means), style, ms=4, color=NEUTRAL if t == 1.0 else FAKE_COLOUR, label=name)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return _png(figure)


def figures(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    p_fake: NDArray[np.float64],
    result: Mapping[str, Any],
    temperature: float,
) -> dict[str, bytes]:
    """The evaluation's figures: file name (without `.png`) -> PNG.

    Args:
        labels: int (N,).
        scores: float (N,) logits, which rank the images.
        p_fake: float (N,).
        result: as `evaluation.evaluate` writes to metrics.json.
        temperature: of the bundle.
    """
    called = result["thresholds"][result["verdict_threshold"]]
    title = f"Confusion matrix at p_fake >= {called['threshold']:.4f} ({result['verdict_threshold']})"
    drawn = {"confusion_matrix": confusion_matrix(called["confusion_matrix"], title)}
    if result["roc_auc"] is not None:
        drawn["roc"] = roc_curve(labels, scores, result["roc_auc"])
        drawn["precision_recall"] = precision_recall_curve(labels, scores, result["average_precision"])
    shown = {name: at["threshold"] for name, at in result["thresholds"].items()}
    drawn["score_histogram"] = score_histogram(labels, p_fake, shown)
    drawn["reliability"] = reliability(labels, scores, temperature)
    return drawn


def html(result: Mapping[str, Any], pictures: Mapping[str, bytes], report_text: str, run: Mapping[str, Any]) -> str:
    """One self-contained page: the pictures are embedded, nothing is requested from anywhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("deepfake_ray").joinpath("report.html.j2").read_text("utf-8"))
    embedded = {name: base64.b64encode(data).decode() for name, data in pictures.items()}
    return template.render(
        result=result,
        verdict=result["thresholds"][result["verdict_threshold"]],
        pictures=embedded,
        captions=CAPTIONS,
        slices={by: list(of) for by, of in itertools.groupby(result["slices"], key=lambda one: one["by"])},
        names=NAMES,
        columns=COLUMNS,
        report_text=report_text,
        run=run,
    )


CAPTIONS = {
    "confusion_matrix": "True classes are rows: the lower left are fakes that passed, the upper right reals accused.",
    "roc": "Each point is a threshold. The dotted line is guessing.",
    "precision_recall": "Of the images called fake, how many are; against how many of the fakes are found.",
    "reliability": "Points above the diagonal: fakes are more frequent than p_fake says; below it: less frequent.",
    "score_histogram": "A good detector keeps the two colours apart; the lines are the thresholds.",
}

NAMES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    "tpr_at_fpr_1": "fakes found at 1 % of reals accused, on these images",
    "tpr_at_fpr_5": "fakes found at 5 % of reals accused, on these images",
    "brier": "Brier score",
    "log_loss": "log loss (nats)",
    "ece": "expected calibration error, 15 equal-width bins of p_fake",
}

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "precision_fake": "precision",
    "recall_fake": "recall",
    "f1_fake": "F1 fake",
    "f1_macro": "F1 macro",
    "specificity": "specificity",
    "mcc": "MCC",
}
