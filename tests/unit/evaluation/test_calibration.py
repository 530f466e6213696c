"""Temperature and thresholds, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from deepfake_ray.evaluation import calibration, metrics
from deepfake_ray.models import scores


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
        at = metrics.figures_at_threshold(labels, logits, chosen[name])
        assert at["confusion_matrix"][0][1] <= limit
        lowest = np.sort(logits[:1000])[-limit - 1]  # called fake, it would be one real too many
        assert at["recall_fake"] == np.mean(logits[1000:] > lowest)
        assert (chosen[name].num_real, chosen[name].num_fake) == (1000, 1000)
    best = max(
        metrics.figures_at_threshold(labels, logits, scores.threshold_at(p, 1.0))["balanced_accuracy"]
        for p in np.linspace(0, 1, 201)
    )
    assert metrics.figures_at_threshold(labels, logits, chosen["balanced"])["balanced_accuracy"] >= best


def test_thresholds_of_separable_scores_lie_between_the_classes():
    """In the middle of the gap of the logits, from -20 to 4; of p_fake, it would be .49, next to the fakes' edge."""
    chosen = calibration.choose_thresholds([0, 0, 1, 1], np.float32([-30, -20, 4, 5]), 1.0)
    assert {name: chosen[name].logit for name in ("balanced", "fpr_1", "fpr_5")} == dict.fromkeys(
        ("balanced", "fpr_1", "fpr_5"), -8.0
    )


def test_thresholds_do_not_lie_among_the_last_reals():
    """As a quickstart had it: 200 reals, of which two may be accused. The lowest threshold that does lies among them,
    at a p_fake of 6e-7, finds no fake that a higher one would not, and accused a fifth of the test reals.
    """
    reals = np.concatenate([np.linspace(-42, -8, 197), [-7.5, -6.9, -6.8]])
    logits = np.concatenate([reals, np.linspace(2, 20, 200)]).astype(np.float32)
    chosen = calibration.choose_thresholds(np.repeat([0, 1], 200), logits, 0.5)
    assert chosen["fpr_1"].logit == chosen["fpr_5"].logit == pytest.approx((2 - 6.8) / 2, abs=1e-6)


def test_a_real_above_all_fakes_leaves_a_threshold_that_calls_none():
    chosen = calibration.choose_thresholds([0, 0, 1], np.float32([-1, 5, 3]), 2.0)
    assert chosen["fpr_1"].logit == 5 + 2
    # All alike: either all are called fake or none, and fpr_1 must call none.
    alike = calibration.choose_thresholds([0, 1], np.float32([1, 1]), 2.0)
    assert (alike["fpr_1"].logit, alike["balanced"].logit) == (3.0, -1.0)


def test_between_neighbouring_float32_there_is_a_threshold_still():
    low = np.float32(17.3)
    high = np.nextafter(low, np.float32(np.inf))
    chosen = calibration.choose_thresholds([0, 0, 1, 1], [low, low, high, high], 1.0)
    assert chosen["fpr_1"].logit == float(high)
    assert scores.is_predicted_fake([low, high], chosen["fpr_1"]).tolist() == [False, True]


def test_too_few_reals_promise_nothing():
    def warned(num_real):
        labels = np.repeat([0, 1], [num_real, 5])
        logits = np.random.default_rng(0).normal(labels, 1).astype(np.float32)
        return [text.split()[0] for text in calibration.promises_not_kept(calibration.tune(labels, logits).thresholds)]

    assert warned(300) == []
    assert warned(299) == warned(60) == ["fpr_1"]
    assert warned(59) == ["fpr_1", "fpr_5"]


def test_the_temperature_is_for_the_prior_of_the_loss():
    """Two normal distributions, one real in ten: of a model that weights classes alike, and is three times too sure."""
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], [4_000, 36_000])
    x = np.where(labels == 1, rng.normal(1, 1, len(labels)), rng.normal(-1, 3, len(labels)))
    log_odds = norm.logpdf(x, 1, 1) - norm.logpdf(x, -1, 3)  # for as many of both
    logits = (3 * log_odds).astype(np.float32)
    assert calibration.fit_temperature(labels, logits, (0.5, 0.5)) == pytest.approx(3, rel=0.05)
    assert abs(calibration.fit_temperature(labels, logits) - 3) > 0.3
    # Trained without weights, its logits hold the prior; of whatever shares the validation split is.
    with_prior = (3 * (log_odds + math.log(9))).astype(np.float32)
    chosen = np.concatenate([np.arange(4_000), 4_000 + np.arange(4_000)])
    assert calibration.fit_temperature(labels[chosen], with_prior[chosen], (0.1, 0.9)) == pytest.approx(3, rel=0.05)
