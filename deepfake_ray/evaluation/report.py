"""Numbers and pictures -> report.html. Knows neither Ray nor torch."""

import base64
import itertools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from deepfake_ray.evaluation import wording
from deepfake_ray.evaluation.error_gallery import Mistake
from deepfake_ray.models.scores import format_p_fake
from deepfake_ray.schema import CLASSES


def html(
    result: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    errors: Sequence[Mistake],
    report_text: str,
    run: Mapping[str, Any],
) -> str:
    """One self-contained page: the pictures are embedded, nothing is requested from anywhere.

    Args:
        result: as in metrics.json.
        pictures: `figures.draw_evaluation`.
        errors: the most confident ones.
        report_text: `metrics.classification_report`.
        run: run.json of the scoring.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("deepfake_ray.evaluation").joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        result=result,
        verdict=result["thresholds"][result["verdict_threshold"]],
        pictures=pictures,
        embed=lambda data: base64.b64encode(data).decode(),
        number=wording.number,
        in_digits=format_p_fake,
        percent=wording.percent,
        brackets=wording.percent_brackets,
        compared=wording.COMPARED,
        captions=CAPTIONS,
        slices={by: list(of) for by, of in itertools.groupby(result["slices"], key=lambda one: one["by"])},
        names=NAMES,
        columns=COLUMNS,
        errors={label: [error for error in errors if error.true_label == label] for label in CLASSES},
        report_text=report_text,
        run=run,
    )


CAPTIONS = {
    "confusion_matrix": "True classes are rows: the lower left are fakes that passed, the upper right reals accused.",
    "roc": "Each point is a threshold. The dotted line is guessing.",
    "precision_recall": "Of the images called fake, how many are; against how many of the fakes are found.",
    "degradation_jpeg": "The same images re-saved as JPEGs of ever lower quality.",
    "degradation_blur": "The same images after a Gaussian blur.",
    "degradation_other": "The same images re-saved as WebP, shrunk, and posted to social media.",
    "reliability": "Points above the diagonal: fakes are more frequent than p_fake says; below it: less frequent. "
    "Bins of fewer than 10 images are left out; the bars count the images.",
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
