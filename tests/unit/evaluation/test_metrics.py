"""Against numbers worked out by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from deepfake_ray.evaluation import metrics
from deepfake_ray.models.scores import threshold_at

# Eight images; at threshold .5: TN 3, FP 1, FN 1, TP 3... scores chosen so that every count can be read off.
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
P_FAKE = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95])
LOGITS = np.log(P_FAKE / (1 - P_FAKE)).astype(np.float32)
HALF = threshold_at(0.5, 1.0)
NAMES = ("precision", "recall", "f1")


def test_at_threshold_by_hand():
    # Called fake (>= .5): one real of four, five fakes of six.
    found = metrics.figures_at_threshold(LABELS, LOGITS, HALF)
    assert found["confusion_matrix"] == [[3, 1], [1, 5]]
    assert found["accuracy"] == pytest.approx(8 / 10)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert found["precision_fake"] == pytest.approx(5 / 6)
    assert found["recall_fake"] == pytest.approx(5 / 6)
    assert found["precision_real"] == pytest.approx(3 / 4)
    assert found["recall_real"] == pytest.approx(3 / 4)
    assert found["f1_macro"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert found["mcc"] == pytest.approx((5 * 3 - 1 * 1) / math.sqrt(6 * 6 * 4 * 4))


def test_threshold_itself_counts_as_fake():
    assert metrics.figures_at_threshold([0, 1], [-1.0, 0.0], HALF)["recall_fake"] == 1.0
    assert metrics.figures_at_threshold([0, 1], [-1.0, 0.0], threshold_at(0.5 + 1e-9, 1.0))["recall_fake"] == 0.0


def test_roc_auc_by_counting_pairs():
    pairs = [(f > r) + 0.5 * (f == r) for f in P_FAKE[LABELS == 1] for r in P_FAKE[LABELS == 0]]
    assert metrics.threshold_free(LABELS, LOGITS, 1.0)["roc_auc"] == pytest.approx(np.mean(pairs))


def test_average_precision_by_hand():
    # Ranked: fake, real, fake. Precision at the fakes: 1 and 2/3, each worth half of the recall.
    found = metrics.threshold_free([1, 0, 1], [3.0, 2.0, 1.0], 1.0)
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("label", [0, 1])
def test_figures_of_an_absent_class_are_undefined(label):
    """scikit-learn has 0 for most of them, whatever the images (its issues 25531 and 28038)."""
    there, absent = ("real", "fake")[label], ("real", "fake")[1 - label]
    logits = np.array([-2.0, -1.0, 3.0], np.float32)  # one is called fake
    found = metrics.figures_at_threshold([label] * 3, logits, HALF)
    undefined = (
        {"balanced_accuracy", "mcc"} | {f"{name}_macro" for name in NAMES} | {f"{name}_{absent}" for name in NAMES}
    )
    if label:
        undefined.add("specificity")
    assert {name for name, value in found.items() if value is None} == undefined
    recall = 1 / 3 if label else 2 / 3
    assert found["accuracy"] == found[f"recall_{there}"] == found["recall_weighted"] == pytest.approx(recall)
    assert found[f"precision_{there}"] == found["precision_weighted"] == 1.0
    assert found[f"f1_{there}"] == pytest.approx(2 * recall / (recall + 1))
    free = metrics.threshold_free([label] * 3, logits, 1.0)
    needs_both = {"roc_auc", "average_precision", "eer", "tpr_at_fpr_1", "tpr_at_fpr_5"}
    assert {name for name, value in free.items() if value is None} == needs_both
    text = metrics.classification_report([label] * 3, logits, HALF)
    (row,) = [line for line in text.splitlines() if line.split()[:1] == [absent]]
    assert row.split() == [absent, "undefined", "undefined", "undefined", "0"]
    assert "0.0000" not in text


@pytest.mark.parametrize(("threshold", "never"), [(0.0, "real"), (1.0, "fake")])
def test_precision_of_what_is_never_called_is_undefined(threshold, never):
    """As with scikit-learn's zero_division=nan; recall and F1 of it are 0."""
    at = threshold_at(threshold, 1.0)
    found = metrics.figures_at_threshold(LABELS, LOGITS, at)
    undefined = {"mcc", f"precision_{never}", "precision_macro", "precision_weighted"}
    assert {name for name, value in found.items() if value is None} == undefined
    assert (found[f"recall_{never}"], found[f"f1_{never}"], found["balanced_accuracy"]) == (0.0, 0.0, 0.5)
    called = np.full(len(LABELS), int(never == "real"))
    precision, *_ = sk.precision_recall_fscore_support(LABELS, called, labels=[0, 1], zero_division=np.nan)
    assert np.isnan(precision[int(never == "fake")])


def test_numbers_are_scikit_learns():
    random = np.random.default_rng(0)
    labels, logits = random.integers(0, 2, 300), random.normal(size=300).astype(np.float32)
    found = metrics.figures_at_threshold(labels, logits, threshold_at(0.3, 1.0))
    called = (logits >= np.float32(np.log(0.3 / 0.7))).astype(int)
    for average in ("macro", "weighted"):
        expected = sk.precision_recall_fscore_support(labels, called, average=average)
        assert [found[f"{name}_{average}"] for name in NAMES] == pytest.approx(expected[:3], abs=1e-12)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, called), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, called), abs=1e-12)
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, called).tolist()
    text = sk.classification_report(labels, called, target_names=["real", "fake"], digits=4)
    assert metrics.classification_report(labels, logits, threshold_at(0.3, 1.0)) == text
