"""Against numbers worked out by hand."""

import math

import numpy as np
import pytest

from deepfake_ray import bundle, metrics

# Eight images; at threshold .5: TN 3, FP 1, FN 1, TP 3... scores chosen so that every count can be read off.
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
P_FAKE = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95])


def test_at_threshold_by_hand():
    # Called fake (>= .5): one real of four, five fakes of six.
    found = metrics.at_threshold(LABELS, P_FAKE, 0.5)
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
    assert metrics.at_threshold([0, 1], [0.1, 0.5], 0.5)["recall_fake"] == 1.0
    assert metrics.at_threshold([0, 1], [0.1, 0.5], 0.5 + 1e-9)["recall_fake"] == 0.0


def test_roc_auc_by_counting_pairs():
    logits = np.log(P_FAKE / (1 - P_FAKE))
    pairs = [(f > r) + 0.5 * (f == r) for f in P_FAKE[LABELS == 1] for r in P_FAKE[LABELS == 0]]
    assert metrics.threshold_free(LABELS, logits, 1.0)["roc_auc"] == pytest.approx(np.mean(pairs))


def test_average_precision_by_hand():
    # Ranked: fake, real, fake. Precision at the fakes: 1 and 2/3, each worth half of the recall.
    found = metrics.threshold_free([1, 0, 1], [3.0, 2.0, 1.0], 1.0)
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_log_loss_by_hand_and_without_overflow():
    assert metrics.log_loss([1, 0], [math.log(3), math.log(3)], 1.0) == pytest.approx(
        -(math.log(0.75) + math.log(0.25)) / 2
    )
    assert metrics.log_loss([0], [1000.0], 1.0) == pytest.approx(1000.0)


def test_one_class_alone_has_no_auc():
    found = metrics.threshold_free([1, 1], [0.0, 1.0], 1.0)
    assert found["roc_auc"] is None
    assert metrics.at_threshold([1, 1], [0.2, 0.9], 0.5)["balanced_accuracy"] == 0.5


def test_temperature_is_recovered():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 40_000)
    labels = (rng.random(len(true)) < 1 / (1 + np.exp(-true))).astype(int)
    assert metrics.fit_temperature(labels, 3 * true) == pytest.approx(3, rel=0.05)


def test_temperature_keeps_some_doubt():
    """Told apart without an error: any lower temperature has a lower loss."""
    assert metrics.fit_temperature([0, 0, 1, 1], [-3, -2, 2, 3]) == pytest.approx(0.5, abs=1e-4)


def test_p_fake_divides_by_the_temperature():
    assert bundle.p_fake_of([2 * math.log(3)], 2.0)[0] == pytest.approx(0.75)


def test_thresholds_keep_their_promises():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 1000)
    p = np.concatenate([rng.beta(2, 5, 1000), rng.beta(5, 2, 1000)])
    chosen = metrics.choose_thresholds(labels, p)
    assert chosen["default"] == 0.5
    for name, limit in (("fpr_1", 10), ("fpr_5", 50)):
        called = (p[labels == 0] >= chosen[name]).sum()
        assert called == limit  # as many as are allowed, no more
    best = max(metrics.at_threshold(labels, p, t)["balanced_accuracy"] for t in np.linspace(0, 1, 201))
    assert metrics.at_threshold(labels, p, chosen["balanced"])["balanced_accuracy"] >= best


def test_thresholds_of_separable_scores_lie_between_the_classes():
    chosen = metrics.choose_thresholds([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert all(chosen[name] == pytest.approx(0.5) for name in chosen)


def test_classification_report_names_the_classes():
    text = metrics.classification_report(LABELS, P_FAKE, 0.5)
    assert "fake     0.8333    0.8333" in text
