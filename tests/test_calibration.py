"""Temperature and thresholds, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from deepfake_ray import calibration, metrics, scores


def test_log_loss_by_hand_and_without_overflow():
    assert calibration.log_loss([1, 0], [math.log(3), math.log(3)], 1.0) == pytest.approx(
        -(math.log(0.75) + math.log(0.25)) / 2
    )
    assert calibration.log_loss([0], [1000.0], 1.0) == pytest.approx(1000.0)


def test_temperature_is_recovered():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 40_000)
    labels = (rng.random(len(true)) < 1 / (1 + np.exp(-true))).astype(int)
    assert calibration.fit_temperature(labels, 3 * true) == pytest.approx(3, rel=0.05)


def test_temperature_keeps_some_doubt():
    """Told apart without an error: any lower temperature has a lower loss."""
    assert calibration.fit_temperature([0, 0, 1, 1], [-3, -2, 2, 3]) == pytest.approx(0.5, abs=1e-4)


def test_p_fake_divides_by_the_temperature():
    assert scores.p_fake_of([2 * math.log(3)], 2.0)[0] == pytest.approx(0.75)


def test_thresholds_keep_their_promises():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 1000)
    logits = np.concatenate([rng.normal(-1, 1, 1000), rng.normal(1, 1, 1000)]).astype(np.float32)
    chosen = calibration.choose_thresholds(labels, logits, 1.0)
    assert (chosen["default"].logit, chosen["default"].p_fake) == (0.0, 0.5)
    for name, limit in (("fpr_1", 10), ("fpr_5", 50)):
        at = metrics.at_threshold(labels, logits, chosen[name])
        assert at["confusion_matrix"][0][1] <= limit
        lowest = np.sort(logits[:1000])[-limit - 1]  # called fake, it would be one real too many
        assert at["recall_fake"] == np.mean(logits[1000:] > lowest)
        assert (chosen[name].num_real, chosen[name].num_fake) == (1000, 1000)
    best = max(
        metrics.at_threshold(labels, logits, scores.threshold_at(p, 1.0))["balanced_accuracy"]
        for p in np.linspace(0, 1, 201)
    )
    assert metrics.at_threshold(labels, logits, chosen["balanced"])["balanced_accuracy"] >= best


def test_thresholds_of_separable_scores_lie_between_the_classes():
    """In the middle of the gap of the logits, from -20 to 4; of p_fake, it would be .49, next to the fakes' edge."""
    chosen = calibration.choose_thresholds([0, 0, 1, 1], np.float32([-30, -20, 4, 5]), 1.0)
    assert {name: chosen[name].logit for name in ("balanced", "fpr_1", "fpr_5")} == dict.fromkeys(
        ("balanced", "fpr_1", "fpr_5"), -8.0
    )
