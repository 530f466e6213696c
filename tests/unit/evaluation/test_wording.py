"""What an evaluation says in words: its result, and what it warns of, on sets made up so that the answers are known."""

import re
from dataclasses import replace

import numpy as np
import pytest
from grouped import MODEL, images, measured
from simulated import predictions

from deepfake_ray.evaluation import summary, wording
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models.scores import Threshold, threshold_at
from deepfake_ray.models.spec import Spec

PLAIN = replace(MODEL, thresholds={"default": threshold_at(0.5, 1.0)})


def warnings_of(labels, logits, model=PLAIN, threshold="default", **columns):
    return summary.measure(predictions(labels, logits, **columns), model, threshold)["warnings"]


def normal(num_real, num_fake, apart, seed=0):
    labels = np.repeat([0, 1], [num_real, num_fake])
    return labels, np.random.default_rng(seed).normal(apart * (labels - 0.5), 1.0)


def test_a_good_model_is_not_warned_of():
    assert warnings_of(*normal(300, 300, 2.0)) == []


@pytest.mark.parametrize(("label", "there", "absent"), [(0, "real", "fake"), (1, "fake", "real")])
def test_one_class_is_said_and_nothing_of_the_other_is_shown(label, there, absent):
    labels = np.full(20, label)
    scored = predictions(labels, np.linspace(-1, 1, 20))
    result = summary.measure(scored, MODEL, "default") | {"split": "test"}
    (warning,) = result["warnings"]
    assert warning.startswith(f"Only {there} images: figures of {absent} ones")
    text = wording.result_text(result)
    assert "0.0000" not in text
    assert "AUC" not in text
    assert "balanced" not in text
    assert ("fakes found 0.5000" in text) == (there == "fake")
    assert ("reals passed 0.5000" in text) == (there == "real")
    rows = summary.tidy(result).to_pylist()
    (recall,) = [r for r in rows if r["metric"] == f"recall_{absent}" and r["threshold_name"] == "default"]
    assert (recall["value"], recall["low"], recall["high"]) == (None, None, None)


def with_threshold(num_real, logit=1.0):
    """fpr_5 at a logit, chosen on so many reals, and fpr_1 far above."""
    thresholds = {
        "default": threshold_at(0.5, 1.0),
        "fpr_1": Threshold(logit=50.0, p_fake=1.0, num_real=num_real, num_fake=500),
        "fpr_5": Threshold(logit=logit, p_fake=0.73, num_real=num_real, num_fake=500),
    }
    preparation = Preparation(image_size=32)
    return Spec(arch="cnn", preparation=preparation, temperature=1.0, thresholds=thresholds)


def accused(share, num_real):
    """So many reals, of which this share has a logit of 2; as many fakes."""
    labels = np.repeat([0, 1], num_real)
    logits = np.where(labels == 1, 3.0, -1.0)
    logits[: round(share * num_real)] = 2.0
    return labels, logits


def test_a_promise_that_does_not_hold_is_said_with_both_numbers():
    # 80 of 1,000 are 8 %, and by Wilson 6.5 to 9.8 %: above 5 %. 60 of 1,000 are 6 %, 4.7 to 7.6 %: it may be chance.
    (warning,) = warnings_of(*accused(0.08, 1000), with_threshold(400))
    assert warning == (
        "fpr_5 is to call at most 5 % of real images fake, and calls 8.0 % (6.5 to 9.8 %) of these 1,000: do not rely "
        "on it for images like these."
    )
    assert warnings_of(*accused(0.06, 1000), with_threshold(400)) == []
    assert warnings_of(*accused(0.0, 1000), with_threshold(400)) == []


def test_by_group_a_promise_is_broken_only_beyond_the_interval_of_groups():
    labels, logits = accused(0.08, 1000)
    groups = [f"video {i // 40}" for i in range(2000)]  # two of 25 videos of reals, as whole
    assert warnings_of(labels, logits, with_threshold(400), group=groups) == []


def test_thresholds_of_few_reals_promise_nothing():
    few, enough, unknown = (
        summary.measure(predictions(*accused(0.08, 1000)), with_threshold(number), "default")
        for number in (59, 300, None)
    )
    for result, promised in ((few, [False, False]), (enough, [True, True]), (unknown, [True, True])):
        assert [result["thresholds"][name]["is_promised"] for name in ("fpr_1", "fpr_5")] == promised
        assert [result["thresholds"][name]["max_fpr"] for name in ("default", "fpr_1", "fpr_5")] == [None, 0.01, 0.05]
    between = summary.measure(predictions(*accused(0.0, 100)), with_threshold(299), "default")["thresholds"]
    assert (between["fpr_1"]["is_promised"], between["fpr_5"]["is_promised"]) == (False, True)
    assert "It was chosen on 59 real validation images; 60 are needed." in few["warnings"][0]


def test_guessing_and_labels_the_other_way_round_are_told_apart():
    (guess,) = warnings_of(*normal(200, 200, 0.0))
    assert re.fullmatch(
        r"Not distinguishable from guessing: ROC AUC 0\.\d{4} \(0\.4\d+ to 0\.5\d+\); the interval holds 0\.5\.", guess
    )
    labels, logits = normal(200, 200, 2.0)
    (turned,) = warnings_of(1 - labels, logits)
    assert turned.startswith("ROC AUC 0.0")
    assert "The labels may be the other way round" in turned
    # Without an error there is no interval; it is said all the same.
    perfect = np.repeat([0, 1], 50)
    assert any("the other way round" in one for one in warnings_of(perfect, 1.0 - 2.0 * perfect))
    assert not any("the other way round" in one for one in warnings_of(perfect, 2.0 * perfect - 1.0))


def test_verdicts_of_one_kind_are_warned_of():
    labels, logits = normal(200, 200, 2.0)
    assert "100.0% of the images are called fake" in warnings_of(labels, logits + 20)[0]


def test_the_result_has_the_comparison_and_the_degradations():
    result = measured(images()) | {"split": "test"}
    result["comparison"] |= {"model_id": "beef", "with": "/other"}
    lines = wording.result_text(result).splitlines()
    assert lines[0].startswith(f"test: ROC AUC {result['roc_auc']:.4f} (")
    assert lines[0].endswith("on 800 images (400 real, 400 fake) at default (p_fake >= 0.5)")
    assert lines[1] == "beside model beef, on the 800 images of both, each at its own threshold:"
    of = result["comparison"]["difference"]["accuracy"]
    low, high = of["interval"]
    (accuracy,) = [line for line in lines if line.strip().startswith("accuracy")]
    assert accuracy.endswith(f"{of['value']:+.4f} ({low:.4f} to {high:.4f})")
    assert f"McNemar's test, p = {result['comparison']['mcnemar_p']:.2g}" in "\n".join(lines)
    at = lines.index("after degradations:")
    assert lines[at + 1].split("  ")[-1] == "verdicts flipped"
    assert lines[at + 3].split()[:3] == ["JPEG", "50", "800"]
    assert lines[at + 3].split()[-1] == f"{result['degradations'][1]['flipped']:.4f}"


def test_negative_numbers_have_no_dash_before_them():
    assert wording.span((-0.012, 0.003), 3) == " (-0.012 to 0.003)"
    assert wording.span(None) == ""
    assert wording.number(None) == "–"
