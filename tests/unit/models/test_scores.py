"""Thresholds through the float32 that is written: what is chosen, what the scorer says, and what evaluation says.

The generators leave nothing out that training can leave: ties, neighbouring float32, logits that saturate p_fake.
"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from deepfake_ray import schema
from deepfake_ray.config import EvaluateConfig
from deepfake_ray.data import tables
from deepfake_ray.drivers import evaluate
from deepfake_ray.errors import UserError
from deepfake_ray.evaluation import calibration, metrics, summary
from deepfake_ray.images.loading import Loaded
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models.scores import (
    HIGHEST,
    LOWEST,
    Threshold,
    format_p_fake,
    is_predicted_fake,
    logit_of,
    p_fake_of,
    require_same_precision,
    threshold_at,
    threshold_of_rows,
)
from deepfake_ray.models.spec import Spec
from deepfake_ray.scoring.rows import predictions


@st.composite
def validations(draw):
    """Labels and float32 logits of a validation split, both classes in it; and a temperature."""
    number = draw(st.integers(2, 500))
    share = draw(st.sampled_from([0.01, 0.1, 0.5, 0.9, 0.99]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = (random.random(number) < share).astype(np.int64)
    labels[:2] = 0, 1
    apart = draw(st.sampled_from([0.0, 1.0, 4.0, 30.0]))
    scale = draw(st.sampled_from([1e-6, 1.0, 12.0, 1e4]))
    logits = ((2 * labels - 1) * apart + scale * random.normal(size=number) + draw(st.floats(-40, 40))).astype(
        np.float32
    )
    kind = draw(st.sampled_from(["as they are", "tied", "neighbours", "equal"]))
    if kind == "tied":
        logits = np.round(logits)
    elif kind == "neighbours":  # all within some steps of float32 from one another
        start = np.float32(draw(st.floats(-50, 50, width=32)))
        steps = random.integers(0, 6, number) + labels
        values = [start]
        for _ in range(7):
            values.append(np.nextafter(values[-1], np.float32(np.inf)))
        logits = np.array(values, np.float32)[steps]
    elif kind == "equal":
        logits = np.full(number, logits[0])
    return labels, logits, draw(st.floats(0.5, 20))


def model(thresholds, temperature):
    return Spec(arch="cnn", preparation=Preparation(image_size=32), temperature=temperature, thresholds=thresholds)


def written(labels, logits, spec, threshold):
    """The rows of the predictions, as they are after a file."""
    names = [schema.CLASSES[label] for label in labels]
    rows = tables.manifest_rows({"uri": [f"/{i}" for i in range(len(labels))], "label": names}, len(labels))
    run = SimpleNamespace(threshold=threshold, run_id="r", degradations=(), precision="fp32")
    return predictions(rows, [Loaded() for _ in labels], logits[:, None], spec, run)


@given(validations())
@example((np.array([0, 0, 0, 1]), np.float32([17.5, 18.0, 19.0, 25.0]), 1.0))  # where p_fake is 1 in float32
@example((np.array([0] * 100 + [1] * 2), np.float32([-30.0] * 99 + [40.0] + [41.0, 42.0]), 0.5))
@example((np.array([0, 1]), np.float32([1e30, 1e30]), 20.0))
def test_written_verdicts_keep_what_thresholds_promise(validation):
    labels, logits, temperature = validation
    thresholds = calibration.choose_thresholds(labels, logits, temperature)
    assert set(thresholds) == {"default", "balanced", "fpr_1", "fpr_5"}
    spec = model(thresholds, temperature)
    num_real = int(np.sum(labels == schema.REAL))
    for name, threshold in thresholds.items():
        assert float(np.float32(threshold.logit)) == threshold.logit
        assert math.isfinite(threshold.logit)
        assert threshold.p_fake == pytest.approx(float(p_fake_of(threshold.logit, temperature)))
        assert json.loads(json.dumps(threshold.p_fake, allow_nan=False)) == threshold.p_fake
        rows = written(labels, logits, spec, threshold)
        fake = np.array(rows["predicted_label"].to_pylist()) == "fake"
        # As anybody may ask of the file: both columns are float32.
        assert np.array_equal(fake, rows["logit"].to_numpy() >= rows["threshold_logit"].to_numpy())
        assert set(rows["threshold"].to_pylist()) == {threshold.p_fake}
        accused = int(np.sum(fake & (labels == schema.REAL)))
        if name in calibration.MAX_FPR:
            assert accused <= math.floor(calibration.MAX_FPR[name] * num_real + 1e-9)
        found = metrics.figures_at_threshold(labels, logits, threshold)["confusion_matrix"]
        assert found[0][1] == accused
        assert found[1][1] == int(np.sum(fake & (labels == schema.FAKE)))
        below, above = logits[logits < np.float32(threshold.logit)], logits[logits >= np.float32(threshold.logit)]
        if name != "default" and len(below) and len(above):  # farthest from both, up to the grain of float32
            gap = float(above.min()) - float(below.max())
            grain = float(np.spacing(max(np.abs(above.min()), np.abs(below.max()))))
            assert abs((float(above.min()) + float(below.max())) / 2 - threshold.logit) <= max(grain, gap * 1e-6)


@given(validations())
def test_no_threshold_finds_more_fakes_for_as_few_accused(validation):
    labels, logits, temperature = validation
    thresholds = calibration.choose_thresholds(labels, logits, temperature)
    reals, fakes = logits[labels == schema.REAL], logits[labels == schema.FAKE]
    everywhere = [*np.unique(logits), np.float32(np.inf)]
    for name, limit in calibration.MAX_FPR.items():
        chosen = thresholds[name].logit
        found, accused = np.sum(fakes >= chosen), np.sum(reals >= chosen)
        for other in everywhere:
            if np.sum(reals >= other) <= math.floor(limit * len(reals) + 1e-9):
                assert np.sum(fakes >= other) < found or (
                    np.sum(fakes >= other) == found and np.sum(reals >= other) >= accused
                )


@given(validations())
def test_evaluation_counts_the_written_verdicts(validation):
    labels, logits, temperature = validation
    spec = model(calibration.choose_thresholds(labels, logits, temperature), temperature)
    rows = written(labels, logits, spec, spec.threshold("fpr_5"))
    found_labels, found_logits = summary.arrays(rows)
    assert found_logits.dtype == np.float32
    fake = np.array(rows["predicted_label"].to_pylist()) == "fake"
    assert np.array_equal(is_predicted_fake(found_logits, spec.threshold("fpr_5")), fake)
    assert np.array_equal(found_labels, labels)


@pytest.mark.parametrize("number", ["0", "1", "0.1", "0.3", "0.7"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 20.0])
def test_a_number_is_turned_into_a_logit_once(number, temperature):
    """float32(.7) is below .7: the scorer said fake of such a p_fake, and SQL real."""
    spec = model({}, temperature)
    threshold = spec.threshold(number)
    assert threshold.p_fake == float(number)
    near = np.float32(threshold.logit)
    logits = np.array([-1e30, -200, near, 200, 1e30], np.float32)
    if 0 < float(number) < 1:
        logits = np.concatenate([logits, [np.nextafter(near, np.float32(s * np.inf)) for s in (-1, 1)]]).astype(
            np.float32
        )
    rows = written(np.zeros(len(logits), int), logits, spec, threshold)
    fake = np.array(rows["predicted_label"].to_pylist()) == "fake"
    assert np.array_equal(fake, rows["logit"].to_numpy() >= rows["threshold_logit"].to_numpy())
    expected = {"0": [1, 1, 1, 1, 1], "1": [0, 0, 1, 0, 0]}.get(number, [0, 0, 1, 1, 1, 0, 1])
    assert fake.tolist() == [bool(one) for one in expected]
    json.dumps(threshold.logit, allow_nan=False)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.floats(0.5, 20), st.floats(-60, 60, width=32))
def test_a_higher_number_calls_no_more_images_fake(numbers, temperature, logit):
    verdicts = [is_predicted_fake([logit], threshold_at(number, temperature))[0] for number in sorted(numbers)]
    assert verdicts == sorted(verdicts, reverse=True)


@given(st.floats(1e-300, 1 - 1e-15), st.floats(0.5, 20))
def test_the_logit_of_a_number_has_that_p_fake(number, temperature):
    assume(number > 1e-300)
    found = float(p_fake_of(logit_of(number, temperature), temperature))
    assert math.log(found) == pytest.approx(math.log(number), abs=1e-4)


def test_ends_are_finite():
    assert (logit_of(0, 1.0), logit_of(1, 1.0)) == (LOWEST, HIGHEST)
    assert not is_predicted_fake([1e38], threshold_at(1, 1.0))[0]
    assert is_predicted_fake([-1e38], threshold_at(0, 1.0))[0]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="not in"):
            logit_of(wrong, 1.0)


def test_verdicts_of_an_earlier_version_are_found_again():
    logits = np.float32([-2, -0.5, 0.3, 4])
    p_fake = p_fake_of(logits, 1.5).astype(np.float32)
    found = threshold_of_rows(pa.array(logits), pa.array(p_fake), 0.4)
    assert is_predicted_fake(logits, found).tolist() == (p_fake >= 0.4).tolist() == [False, True, True, True]
    assert not is_predicted_fake(logits, threshold_of_rows(logits, p_fake, 0.99)).any()


@pytest.mark.parametrize(
    ("before", "now", "remedy"),
    [
        ("bf16", "fp32", "add --precision bf16"),
        ("fp32", "bf16", "add --precision fp32"),
        ("int8", "fp32", "score all images"),
        (None, "fp32", "was not noted"),
    ],
)
def test_another_precision_is_refused_by_name(before, now, remedy):
    with pytest.raises(UserError, match=rf"somewhere: precision .*{remedy}"):
        require_same_precision("somewhere", before, now)
    require_same_precision("somewhere", now, now)


@pytest.mark.parametrize(
    ("computed_in", "asked", "then"),
    [("fp32", "auto", "fp32"), ("bf16", "auto", "bf16"), ("int8", "auto", "auto"), (None, "fp32", "fp32")],
)
def test_degraded_images_are_scored_as_the_others_were(capsys, computed_in, asked, then):
    """--predictions of fp32, or of crops, were compared with degraded images in what `auto` came to, or of one crop."""
    run = {"config": {"crops": 3}} | ({} if computed_in is None else {"precision": computed_in})
    config = EvaluateConfig(predictions="/p", labels="/l", output="/o", degrade=9, precision=asked)
    found = evaluate._as_scored(run, config)
    assert (found.precision, found.crops) == (then, 3)
    assert ("was not noted" in capsys.readouterr().err) == (computed_in is None)


@pytest.mark.parametrize("logit", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(logit):
    """Earlier versions wrote those of broken models, and called NaN real."""
    rows = pa.table({"uri": ["/a", "/b", "/c"], "status": ["ok", "error", "ok"], "logit": [1.0, None, logit]})
    with pytest.raises(UserError, match="scores must be finite: 1 of /p are not, such as that of /c"):
        evaluate._scored(rows, "/p")
    assert evaluate._scored(rows[:2], "/p")["uri"].to_pylist() == ["/a"]


@pytest.mark.parametrize(
    ("p_fake", "text"),
    [
        (0.0, "0"), (1.85e-06, "1.85e-06"), (0.50641234, "0.5064"), (0.5, "0.5"), (0.9, "0.9"),
        (0.999984321, "0.99998432"),
        (1 - 2.0**-53, "0.9999999999999998890"), (1.0, "1"),
    ],
)  # fmt: skip
def test_a_threshold_below_1_is_not_shown_as_1(p_fake, text):
    assert format_p_fake(p_fake) == text.rstrip("0" if "." in text else "")


def test_thresholds_travel_through_json():
    threshold = Threshold(logit=float(np.float32(0.1)), p_fake=0.5, num_real=3, num_fake=4)
    text = json.dumps({"logit": threshold.logit, "p_fake": 0.5, "num_real": 3, "num_fake": 4})
    assert Threshold.from_json(json.loads(text), 1.0) == threshold
