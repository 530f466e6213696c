"""When a scoring run stops early."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_ray.errors import OF_THE_STORAGE, ErrorCode, JobError
from deepfake_ray.scoring.error_limit import ErrorWatch
from deepfake_ray.scoring.spec import Report

OTHERS = sorted(set(ErrorCode) - OF_THE_STORAGE)


def report(num_images, **errors):
    return Report(index=0, num_images=num_images, errors_by_code=Counter(errors), started_at=0.0, ended_at=1.0)


def is_stopped(share, reports):
    """By which report, and why; None if by none."""
    watch = ErrorWatch(share)
    for number, one in enumerate(reports):
        try:
            watch.add(one)
        except JobError as error:
            return number, "storage" if "the storage failed" in str(error) else "errors"
    return None


@pytest.mark.parametrize(
    ("share", "num_images", "num_errors", "expected"),
    [
        (0.5, 1000, 500, None),  # not more than the share
        (0.5, 1000, 501, (0, "errors")),
        (0.5, 999, 999, None),  # too few to tell
        (0.0, 1000, 1, (0, "errors")),
        (1.0, 5000, 5000, None),
        (0.1, 1000, 100, None),
        (0.1, 1000, 101, (0, "errors")),
    ],
)
def test_the_share_and_the_least_number(share, num_images, num_errors, expected):
    assert is_stopped(share, [report(num_images, truncated=num_errors)]) == expected
    stopped_by_storage = expected and (0, "storage")
    assert is_stopped(share, [report(num_images, timeout=num_errors)]) == stopped_by_storage


def test_a_storage_that_fails_late_is_noticed_though_most_images_were_read():
    """A day of good images must not hide an outage."""
    good = [report(100)] * 1000
    assert is_stopped(0.5, [*good, *[report(100, forbidden=100)] * 20]) == (1005, "storage")
    assert is_stopped(0.5, [*good, *[report(100, truncated=100)] * 20]) is None
    # An outage that is over is not held against the run.
    outage = [report(100, storage_error=100)] * 5
    assert is_stopped(0.5, [*good, *outage, *good, *outage, *good]) is None


def counts(maximum):
    return st.integers(0, maximum)


@st.composite
def reports(draw):
    found = []
    for _ in range(draw(st.integers(1, 30))):
        num_images = draw(st.sampled_from([1, 7, 64, 250, 1000, 1001, 2500]))
        num_storage = draw(st.sampled_from([0, num_images // 2, num_images // 2 + 1, num_images]) | counts(num_images))
        num_others = draw(counts(num_images - min(num_storage, num_images)))
        codes = {draw(st.sampled_from(sorted(OF_THE_STORAGE))): min(num_storage, num_images)}
        codes[draw(st.sampled_from(OTHERS))] = num_others
        found.append(report(num_images, **{str(code): number for code, number in codes.items()}))
    return found


def naive(share, given_reports):
    """The rule as the help says it, reckoned anew for each report from all there were."""
    for number in range(len(given_reports)):
        so_far = given_reports[: number + 1]
        window = []
        for one in reversed(so_far):  # the fewest last ones that hold a thousand images
            window.append(one)
            if sum(of.num_images for of in window) >= 1000:
                break
        recent = sum(of.num_images for of in window)
        failed = sum(of.errors_by_code[code] for of in window for code in OF_THE_STORAGE)
        if recent >= 1000 and failed > share * recent:
            return number, "storage"
        done = sum(of.num_images for of in so_far)
        errors = sum(of.errors_by_code.total() for of in so_far)
        if done >= 1000 and errors > share * done:
            return number, "errors"
    return None


@given(st.sampled_from([0.0, 0.01, 0.5, 1.0]), reports())
def test_it_stops_when_the_rule_says_so(share, given_reports):
    assert is_stopped(share, given_reports) == naive(share, given_reports)
