"""Against numbers worked out by hand."""

import math

import numpy as np
import pytest

from deepfake_ray import metrics
from deepfake_ray.scores import threshold_at

# Eight images; at threshold .5: TN 3, FP 1, FN 1, TP 3... scores chosen so that every count can be read off.
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
P_FAKE = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95])
LOGITS = np.log(P_FAKE / (1 - P_FAKE)).astype(np.float32)
HALF = threshold_at(0.5, 1.0)


def test_at_threshold_by_hand():
    # Called fake (>= .5): one real of four, five fakes of six.
    found = metrics.at_threshold(LABELS, LOGITS, HALF)
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
    assert metrics.at_threshold([0, 1], [-1.0, 0.0], HALF)["recall_fake"] == 1.0
    assert metrics.at_threshold([0, 1], [-1.0, 0.0], threshold_at(0.5 + 1e-9, 1.0))["recall_fake"] == 0.0


def test_roc_auc_by_counting_pairs():
    pairs = [(f > r) + 0.5 * (f == r) for f in P_FAKE[LABELS == 1] for r in P_FAKE[LABELS == 0]]
    assert metrics.threshold_free(LABELS, LOGITS, 1.0)["roc_auc"] == pytest.approx(np.mean(pairs))


def test_average_precision_by_hand():
    # Ranked: fake, real, fake. Precision at the fakes: 1 and 2/3, each worth half of the recall.
    found = metrics.threshold_free([1, 0, 1], [3.0, 2.0, 1.0], 1.0)
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_one_class_alone_has_no_auc():
    found = metrics.threshold_free([1, 1], [0.0, 1.0], 1.0)
    assert found["roc_auc"] is None
    assert metrics.at_threshold([1, 1], [-0.2, 0.9], HALF)["balanced_accuracy"] == 0.5


def test_classification_report_names_the_classes():
    text = metrics.classification_report(LABELS, LOGITS, HALF)
    assert "fake     0.8333    0.8333" in text
