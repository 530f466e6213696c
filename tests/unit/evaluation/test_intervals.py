"""How sure figures are: intervals against published and exact numbers, and against what must not change them."""

import itertools

import numpy as np
import pandas as pd
import pytest
from grouped import MODEL, images, measured
from scipy.stats import binom, binomtest, norm
from simulated import predictions, simulated

from deepfake_ray.evaluation import intervals, summary
from deepfake_ray.evaluation.intervals import Clusters
from deepfake_ray.evaluation.ranking import Ranking


def alone(number):
    """Each image for itself."""
    return Clusters.of([None] * number)


# --- shares of images


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_the_published_limits(successes, trials, low, high):
    assert intervals.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    right = np.arange(trials) < successes
    assert intervals.proportion(right, alone(trials)) == intervals.wilson(successes, trials)


def test_wilson_covers_at_its_rate():
    """Summed over all outcomes, not simulated."""
    for share in (0.5, 0.8, 0.95):
        covered = [low <= share <= high for low, high in (intervals.wilson(k, 200) for k in range(201))]
        assert 0.93 < binom.pmf(np.arange(201), 200, share) @ covered < 0.97


@pytest.mark.parametrize("number", [10, 60])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_shares_by_group_cover_at_their_rate(number, share):
    """Groups of 10 images, whose own shares differ: by image, an interval covers in 60 % of the cases."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(number), 10)
    covered = {"group": 0, "image": 0}
    for _ in range(300):
        own = random.beta(share, 1 - share, number)  # an intraclass correlation of .5
        right = random.random(len(groups)) < own[groups]
        for by, clusters in (("group", Clusters.of(groups)), ("image", alone(len(groups)))):
            low, high = intervals.proportion(right, clusters)
            covered[by] += low <= share <= high
    assert covered["group"] > 0.92 * 300
    assert covered["image"] < 0.75 * 300


def test_groups_that_all_fare_alike_are_worth_as_much_as_one_image_each():
    groups = np.repeat(np.arange(100), 8)
    by_group = intervals.proportion(np.repeat(np.arange(100) < 70, 8), Clusters.of(groups))
    assert by_group == pytest.approx(intervals.wilson(70, 100), abs=0.003)
    assert intervals.proportion(np.ones(800, bool), Clusters.of(groups)) == pytest.approx(
        intervals.wilson(100, 100), abs=0.002
    )
    # One more error must not make it surer.
    one_error = np.arange(800) != 5
    low, _ = intervals.proportion(one_error, Clusters.of(groups))
    assert low < intervals.proportion(np.ones(800, bool), Clusters.of(groups))[0] + 0.002


def test_few_groups_have_no_interval():
    groups = np.repeat(np.arange(9), 100)
    assert intervals.proportion(np.ones(900, bool), Clusters.of(groups)) is None
    assert intervals.proportion(np.ones(900, bool), Clusters.of([*groups[:-1], "another"])) is not None
    among = groups < 5
    many = Clusters.of(np.repeat(np.arange(30), 30))
    assert intervals.proportion(np.ones(900, bool), many, among) is not None
    assert intervals.proportion(np.ones(900, bool), many, np.arange(900) < 9 * 30) is None
    assert intervals.proportion(np.ones(5, bool), alone(5), np.zeros(5, bool)) is None


def test_an_image_without_a_group_is_a_group_of_its_own():
    some = Clusters.of(["a", None, "a", "b", None])
    assert (some.by, some.count(), some.count(np.array([1, 1, 0, 0, 1], bool))) == ("group", 4, 3)
    assert some.members[0] == some.members[2]
    assert Clusters.of(["a", None, "b"]).by == Clusters.of([None, None]).by == "image"
    assert Clusters.of(pd.Series(["a", np.nan, "a"])).count() == 2


# --- figures of resamples


def grouped(seed):
    """60 groups of 5 images of one class each, which share half of their variance: an AUC of Phi(1 / sqrt 2)."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), 5)
    labels = groups % 2
    logits = labels + np.sqrt(0.5) * random.normal(size=60)[groups] + np.sqrt(0.5) * random.normal(size=300)
    return labels, logits, groups


def test_bootstrap_covers_at_its_rate_only_by_group(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    true = norm.cdf(1 / np.sqrt(2))
    covered = {"group": 0, "image": 0}
    for seed in range(150):
        labels, logits, groups = grouped(seed)
        figures = Ranking(labels, logits, 1.0).figures
        for by in covered if seed < 50 else ["group"]:
            clusters = Clusters.of(groups) if by == "group" else alone(300)
            low, high = intervals.bootstrap(figures, labels, clusters, [logits], seed)["roc_auc"]
            covered[by] += low <= true <= high
    # .95 of 150 is 142.5, with a standard deviation of 2.7; percentile intervals of 60 groups run a little narrow.
    assert 134 <= covered["group"] <= 149
    assert covered["image"] < 44  # of 50: by image some four in five cover


def test_bootstrap_repeats_and_says_when_it_cannot():
    labels, logits = simulated(60)
    figures = Ranking(labels, logits, 1.0).figures
    first, second = (intervals.bootstrap(figures, labels, alone(60), [logits], 1) for _ in range(2))
    assert first == second
    ones = np.ones(12, int)
    one_class = intervals.bootstrap(Ranking(ones, range(12), 1.0).figures, ones, alone(12), [range(12)])
    assert one_class["roc_auc"] is None
    assert one_class["brier"] is not None
    few = np.arange(60) < 9  # nine reals are too few to show how much they differ
    none = intervals.bootstrap(figures, (~few).astype(int), alone(60), [logits])
    assert set(none) == set(first)
    assert not any(none.values())


def test_an_auc_without_an_error_is_not_called_certain():
    labels = np.repeat([0, 1], 20)
    result = summary.measure(predictions(labels, labels * 4.0 - 2), MODEL, "default")
    assert (result["roc_auc"], result["intervals"]["roc_auc"]) == (1.0, None)
    low, high = result["thresholds"]["default"]["intervals"]["recall_fake"]
    assert (low, high) == (pytest.approx(0.8389, abs=1e-4), 1.0)  # Wilson's of 20 in 20


# --- who is better in more groups


def test_the_sign_test_is_mcnemars_by_image_and_enumerated_by_group():
    for first, second in ((10, 2), (3, 3), (0, 5), (40, 61)):
        difference = np.repeat([1, -1, 0], [first, second, 30])
        p = intervals.sign_test(difference, alone(len(difference)))
        assert p == pytest.approx(binomtest(first, first + second).pvalue, rel=1e-9)
    assert intervals.sign_test(np.zeros(5, int), alone(5)) == 1.0
    # Six groups whose sums are 5, 3, -2, 1, 1, 4: of 64 tosses, those at least as far from 0 as 12.
    sums = [5, 3, -2, 1, 1, 4]
    groups = np.repeat(np.arange(6), np.abs(sums))
    far = [abs(np.dot(signs, sums)) >= 12 for signs in itertools.product((-1, 1), repeat=6)]
    assert intervals.sign_test(np.sign(sums)[groups], Clusters.of(groups)) == pytest.approx(np.mean(far))


def test_the_sign_test_does_not_see_repetitions_within_groups(monkeypatch):
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    difference = random.choice([-1, 0, 1], 200, p=[0.15, 0.6, 0.25])
    p = intervals.sign_test(difference, Clusters.of(groups))
    again = intervals.sign_test(np.repeat(difference, 7), Clusters.of(np.repeat(groups, 7)))
    assert again == pytest.approx(p, rel=1e-9)
    assert intervals.sign_test(np.repeat(difference, 7), alone(1400)) < p / 100
    monkeypatch.setattr(intervals, "MAX_STEPS", 1)
    assert intervals.sign_test(difference, Clusters.of(groups)) == pytest.approx(p, rel=0.25)


# --- what must not change an interval, and what must


@pytest.fixture
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)


def walk(value, path=()):
    """(path, interval) of every interval that there is, whatever it is of: new figures are found by themselves."""
    if isinstance(value, dict):
        for key, of in value.items():
            if key == "intervals":
                yield from (((*path, name), interval) for name, interval in of.items())
            elif key == "interval" or key.endswith("_interval"):
                yield (*path, key), of
            else:
                yield from walk(of, (*path, key))
    elif isinstance(value, list):
        for i, of in enumerate(value):
            yield from walk(of, (*path, of.get("value", of.get("name", i)) if isinstance(of, dict) else i))


def widths(result):
    found = dict(walk(result))
    assert found.pop(("degradations", "as_it_is", "flipped_interval")) is None, "nothing can flip there"
    return {path: high - low for path, (low, high) in found.items()}


def repeated(frame, times):
    return frame.loc[np.repeat(frame.index, times)].reset_index(drop=True)


@pytest.mark.usefixtures("fewer_resamples")
def test_the_walker_finds_every_kind_of_interval():
    found = [path for path, _ in walk(measured(images()))]
    assert {"roc_auc", "thresholds", "slices", "degradations", "comparison"} <= {path[0] for path in found}
    assert len(found) == 8 + 2 * 16 + 4 * 2 + 2 * 2 + 5


@pytest.mark.usefixtures("fewer_resamples")
def test_repeating_images_within_their_groups_adds_no_certainty():
    frame = images()
    first, second = measured(frame), measured(repeated(frame, 6))
    assert second["comparison"]["mcnemar_p"] == pytest.approx(first["comparison"]["mcnemar_p"], rel=1e-9)
    once, often = widths(first), widths(second)
    assert set(once) == set(often)
    assert not {path: (once[path], often[path]) for path in once if not 0.8 < often[path] / once[path] < 1.25}


@pytest.mark.usefixtures("fewer_resamples")
def test_more_images_without_groups_make_narrower_intervals():
    frame = images().assign(group=None)
    once, often = widths(measured(frame)), widths(measured(repeated(frame, 9)))
    assert set(once) == set(often)
    # As 1 / sqrt(9); ECE is a sum of absolute values and shrinks itself.
    assert not {path: (once[path], often[path]) for path in once if not 2.3 < once[path] / often[path] < 3.7}


@pytest.mark.usefixtures("fewer_resamples")
def test_order_and_names_change_nothing():
    frame = images()
    expected = dict(walk(measured(frame)))
    shuffled = frame.sample(frac=1, random_state=3).reset_index(drop=True)
    renamed = shuffled.assign(group=[f"{hash(one) % 99991} {one}" for one in shuffled.group])
    for found in (dict(walk(measured(renamed))), dict(walk(measured(frame.iloc[::-1])))):
        assert set(found) == set(expected)
        for path, interval in expected.items():
            assert found[path] == pytest.approx(interval, abs=1e-9), path


@pytest.mark.usefixtures("fewer_resamples")
def test_swapping_the_classes_swaps_the_figures():
    frame = images()
    was = measured(frame)
    turned = measured(frame.assign(label=1 - frame.label))  # the labels alone
    assert turned["roc_auc"] == pytest.approx(1 - was["roc_auc"], abs=1e-12)
    low, high = was["intervals"]["roc_auc"]
    assert turned["intervals"]["roc_auc"] == pytest.approx((1 - high, 1 - low), abs=0.02)
    mirrored = measured(frame.assign(label=1 - frame.label, logit=-frame.logit, after=-frame.after, other=-frame.other))
    assert mirrored["roc_auc"] == pytest.approx(was["roc_auc"], abs=1e-12)
    one, other = was["thresholds"]["default"], mirrored["thresholds"]["default"]
    for real, fake in (("recall_real", "recall_fake"), ("precision_real", "precision_fake")):
        assert other[real] == pytest.approx(one[fake])
        assert other["intervals"][real] == pytest.approx(one["intervals"][fake])
        assert other["intervals"][fake] == pytest.approx(one["intervals"][real])
    for slice_one, slice_other in zip(was["slices"], mirrored["slices"], strict=True):
        assert slice_other["recall_real_interval"] == pytest.approx(slice_one["recall_fake_interval"])
    assert mirrored["degradations"][1]["flipped_interval"] == pytest.approx(was["degradations"][1]["flipped_interval"])


@pytest.mark.parametrize("num_groups", [2, 18])
def test_few_groups_leave_all_intervals_empty_and_say_so(num_groups):
    """One group a class would have intervals of no width; nine a class say nothing of how much groups differ."""
    result = measured(images(num_groups, per_group=40))
    of_a_class = [
        interval for path, interval in walk(result)
        if not {"accuracy", "precision_real", "precision_fake", "flipped_interval"} & {*path}
    ]  # fmt: skip
    assert of_a_class
    assert not any(of_a_class)
    (warning,) = [one for one in result["warnings"] if "Fewer than 10 groups" in one]
    half = num_groups // 2
    assert f"({half} groups of real and {half} groups of fake images)" in warning
    if num_groups == 2:
        assert not any(interval for _, interval in walk(result))
