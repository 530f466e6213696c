"""Two models on the same images, with answers worked out by hand or by scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from deepfake_ray.evaluation import comparison
from deepfake_ray.models.scores import threshold_at

HALF = threshold_at(0.5, 1.0)


def frame(p_fake, labels, groups=None, first=0):
    p = np.asarray(p_fake, float)
    return pd.DataFrame(
        {
            "uri": [f"/{i}" for i in range(first, first + len(p))],
            "logit": np.log(p / (1 - p)),
            "true_label": labels,
            "group": groups,
        }
    )


def test_mcnemar_by_hand():
    # Two reals that pass; twenty fakes: ten that only ours finds, two that only theirs finds, eight that both find.
    labels = ["fake"] * 20 + ["real"] * 2
    ours = frame([0.9] * 10 + [0.1] * 2 + [0.9] * 8 + [0.1] * 2, labels)
    theirs = frame([0.1] * 10 + [0.9] * 2 + [0.9] * 8 + [0.1] * 2, labels)
    found = comparison.compare(ours, theirs, (HALF, HALF))
    assert (found["only_ours_right"], found["only_theirs_right"]) == (10, 2)
    assert found["mcnemar_p"] == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert found["ours"]["accuracy"] == pytest.approx(20 / 22)
    assert found["difference"]["accuracy"]["value"] == pytest.approx(8 / 22)


def test_differences_are_those_of_the_images_in_both():
    random = np.random.default_rng(0)
    labels = random.choice(["real", "fake"], 400)
    z = (labels == "fake") * 2 - 1
    good, bad = (1 / (1 + np.exp(-(z * strength + random.normal(size=400)))) for strength in (1.5, 0.3))
    found = comparison.compare(
        frame(good, labels), frame(bad[50:], labels[50:], first=50), (HALF, threshold_at(0.4, 1.0))
    )
    y = labels[50:] == "fake"
    assert found["num_images"] == 350
    expected = sk.roc_auc_score(y, good[50:]) - sk.roc_auc_score(y, bad[50:])
    assert found["difference"]["roc_auc"]["value"] == pytest.approx(expected, abs=1e-9)
    low, high = found["difference"]["roc_auc"]["interval"]
    assert 0 < low < expected < high
    assert found["theirs"]["accuracy"] == pytest.approx(np.mean((bad[50:] >= 0.4) == y))
    same = comparison.compare(frame(good, labels), frame(good, labels), (HALF, HALF))
    assert (same["mcnemar_p"], same["difference"]["roc_auc"]) == (1.0, {"value": 0.0, "interval": None})


def test_models_that_agree_on_a_few_images_are_not_surely_alike():
    """No resample shows a difference, which says nothing of how large it may be: an interval of no width did."""
    labels = ["fake"] * 12 + ["real"] * 12
    ours, theirs = frame([0.9] * 12 + [0.2] * 12, labels), frame([0.7] * 12 + [0.4] * 12, labels)
    found = comparison.compare(ours, theirs, (HALF, HALF))
    assert all(of == {"value": 0.0, "interval": None} for of in found["difference"].values())


def test_groups_make_intervals_wider():
    """Ten images of each of forty people, all ten alike: there are forty facts, not four hundred."""
    random = np.random.default_rng(1)
    person = np.repeat(np.arange(40), 10)
    labels = np.where(person % 2, "fake", "real")
    ours, theirs = (np.repeat(random.uniform(0.05, 0.95, 40), 10) for _ in range(2))
    widths = []
    for groups in (None, [f"p{i}" for i in person]):
        found = comparison.compare(frame(ours, labels, groups), frame(theirs, labels, groups), (HALF, HALF))
        low, high = found["difference"]["accuracy"]["interval"]
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] * np.sqrt(10), rel=0.25)


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match="no image is in both"):
        comparison.compare(frame([0.5], ["fake"]), frame([0.5], ["fake"], first=9), (HALF, HALF))
    with pytest.raises(ValueError, match="1 images have another label there, such as /1"):
        comparison.compare(frame([0.5] * 2, ["fake"] * 2), frame([0.5] * 2, ["fake", "real"]), (HALF, HALF))
    with pytest.raises(ValueError, match="one class"):
        comparison.compare(frame([0.5], ["fake"]), frame([0.5], ["fake"]), (HALF, HALF))
