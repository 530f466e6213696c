"""The evaluation's figures, against scikit-learn and against numbers worked out by hand."""

import numpy as np
import pytest
from simulated import MODEL, predictions, simulated
from sklearn import metrics as sk

from deepfake_ray import schema
from deepfake_ray.evaluation import metrics, slices, summary
from deepfake_ray.evaluation.intervals import Clusters, wilson
from deepfake_ray.evaluation.ranking import Ranking
from deepfake_ray.models.scores import threshold_at


@pytest.mark.parametrize("weighted", [False, True])
def test_ranking_is_scikit_learns(weighted):
    labels, logits = simulated()
    weights = np.random.default_rng(1).integers(0, 4, len(labels)).astype(float) if weighted else None
    found = Ranking(labels, logits, 2.0).figures(weights)
    p_fake = 1 / (1 + np.exp(-logits / 2))
    expected = {
        "roc_auc": sk.roc_auc_score(labels, logits, sample_weight=weights),
        "average_precision": sk.average_precision_score(labels, logits, sample_weight=weights),
        "brier": sk.brier_score_loss(labels, p_fake, sample_weight=weights),
        "log_loss": sk.log_loss(labels, p_fake, sample_weight=weights),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    fpr, tpr, _ = sk.roc_curve(labels, logits, sample_weight=weights, drop_intermediate=False)
    assert found["tpr_at_fpr_1"] == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-12)
    assert found["tpr_at_fpr_5"] == pytest.approx(tpr[fpr <= 0.05].max(), abs=1e-12)
    rates = np.linspace(0, 1, 200_001)
    crossing = rates[np.argmin(np.abs(np.interp(rates, fpr, tpr) - (1 - rates)))]
    assert found["eer"] == pytest.approx(crossing, abs=1e-5)


def test_equal_error_rate_by_hand():
    # Of three reals and three fakes, one of each is on the wrong side.
    assert Ranking([0, 0, 1, 0, 1, 1], [1, 2, 3, 4, 5, 6], 1.0).figures()["eer"] == pytest.approx(1 / 3)
    assert Ranking([0, 1], [0, 1], 1.0).figures()["eer"] == 0.0


def test_calibration_error_by_hand():
    # Logit 0 is p_fake .5 (bin 7), where one of four is fake; log 9 is .9 (bin 13), where both are.
    logits = np.array([0.0, 0.0, 0.0, 0.0, np.log(9), np.log(9)])
    found = Ranking([0, 0, 0, 1, 1, 1], logits, 1.0).figures()["ece"]
    assert found == pytest.approx((4 * abs(0.5 - 0.25) + 2 * abs(0.9 - 1.0)) / 6)


def test_counts_give_the_numbers_of_the_images():
    labels, logits = simulated(seed=3)
    for threshold in (0.0, 0.3, 0.7, 1.0):
        numbers = metrics.figures_at_threshold(labels, logits, threshold_at(threshold, 1.0))
        matrix = numbers.pop("confusion_matrix")
        of_counts = {
            name: None if np.isnan(value) else value
            for name, value in metrics.figures_from_counts(np.ravel(matrix)).items()
        }
        assert of_counts == numbers


def test_a_label_swap_in_one_source_shows_in_its_slice():
    labels, logits = simulated(900, seed=5)
    sources = np.array(["good", "other", "swapped"])[np.arange(900) % 3]
    wrong = np.where(sources == "swapped", 1 - labels, labels)
    result = summary.measure(predictions(wrong, logits, source=sources), MODEL, "balanced")
    auc = {of["value"]: of["roc_auc"] for of in result["slices"]}
    assert auc["good"] > 0.8
    assert auc["other"] > 0.8
    assert auc["swapped"] < 0.2


def test_sources_may_have_any_name():
    names = ["", " ", "²", "٣ x", "under ", "<b>"]
    labels, logits = np.tile([schema.REAL, schema.FAKE], 6), np.arange(12, dtype=np.float32)
    scored = predictions(labels, logits, source=names * 2)
    found = slices.figures_by_slice(scored, labels, logits, threshold_at(0.5, 1.0), Clusters.of([None] * 12))
    assert sorted(one["value"] for one in found if one["by"] == "source") == sorted(names)


def test_slices_by_hand():
    scored = predictions(
        [0, 0, 0, 1, 1, 1],
        [-1.0, -1.0, 1.0, 1.0, 1.0, -1.0],
        source=[None, None, None, "a", "a", "b"],
        format=["JPEG"] * 4 + ["PNG"] * 2,
        width=[100] * 3 + [600] * 3,
        height=[63] * 2 + [64] * 4,
        jpeg_quality=[49, 50, 95, None, None, None],
    )
    labels, logits = summary.arrays(scored)
    found = {
        (of["by"], of["value"]): of
        for of in slices.figures_by_slice(scored, labels, logits, threshold_at(0.5, 1.0), Clusters.of([None] * 6))
    }
    assert list(found) == [
        ("source", "a"), ("source", "b"), ("format", "JPEG"), ("format", "PNG"), ("short side", "under 64 px"),
        ("short side", "64 to 127 px"), ("JPEG quality", "under 50"), ("JPEG quality", "50 to 69"),
        ("JPEG quality", "95 or more"),
    ]  # fmt: skip
    a = found["source", "a"]
    assert (a["num_real"], a["num_fake"], a["reals"], a["small"]) == (0, 2, "all", True)
    assert (a["recall_fake"], a["recall_real"]) == (1.0, pytest.approx(2 / 3))
    assert a["roc_auc"] == pytest.approx(5 / 6)  # two fakes, of 1, against -1, -1 and 1
    assert found["format", "PNG"]["roc_auc"] is None
    assert found["format", "JPEG"]["num_real"] == 3


def test_every_figure_has_an_interval_around_it():
    labels, logits = simulated(300)
    groups = [f"video {i // 3}" for i in range(300)]
    for columns, by in (({}, "image"), ({"group": groups}, "group")):
        result = summary.measure(predictions(labels, logits, **columns), MODEL, "0.6")
        assert result["intervals_by"] == by
        assert set(result["thresholds"]) == {"default", "balanced", "given"}
        for of in (result, *result["thresholds"].values()):
            assert len(of["intervals"]) in (8, 16)
            for name, (low, high) in of["intervals"].items():
                assert low <= of[name] <= high, name
    at = result["thresholds"]["default"]
    of_images = wilson(at["confusion_matrix"][1][1], int(np.sum(labels)))
    assert summary.measure(predictions(labels, logits), MODEL, "0.6")["thresholds"]["default"]["intervals"][
        "recall_fake"
    ] == pytest.approx(of_images)
    rows = summary.tidy({**result, "split": "test"}).to_pylist()
    (auc,) = [row for row in rows if row["metric"] == "roc_auc"]
    assert (auc["value"], auc["low"], auc["high"]) == (result["roc_auc"], *result["intervals"]["roc_auc"])
