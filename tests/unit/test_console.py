import io
import re

import pytest

from deepfake_ray import console
from deepfake_ray.console import Progress, Rate, duration


def test_a_log_gets_lines_with_rate_errors_and_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with Progress("score", 1000) as shown:
        now[0] = 130.0  # start-up
        shown.update(100)
        now[0] = 134.0
        shown.update(300, 2)  # too soon for another line
        now[0] = 140.0
        shown.update(600, 3, "part 2")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "score: 100 of 1,000 images, 0 errors"
    # 500 images in the 10 s since the first ones.
    assert lines[1] == "score: 600 of 1,000 images, 3 errors, 50 images/s, 8 s left, part 2"
    assert len(lines) == 3  # and one at the end


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (75, "1 min 15 s"), (7260, "2 h 1 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_rate_is_of_the_images_from_the_first_begun_to_the_last_result():
    rate = Rate()
    assert rate.per_s is None
    rate.update(10, 100.0, 102.0)
    assert rate.per_s == 10 / 2
    rate.update(30, 99.0, 101.0)  # of another process, which began before, and said so later
    assert rate.per_s == 30 / 3
    rate.update(40, 104.0, 104.0)
    assert rate.per_s == 40 / 5


def test_the_line_shows_the_rate_that_the_summary_gives(capsys, monkeypatch):
    """Once the bar said 50 images/s, with the start-up in it, and the summary 830."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    rate = Rate()
    with Progress("score", 560, rate=rate) as shown:
        now[0] = 110.0
        rate.update(560, 1000.0, 1000.7)
        shown.update(560)
    lines = set(capsys.readouterr().err.splitlines())
    assert lines == {f"score: 560 of 560 images, 0 errors, {rate.per_s:,.0f} images/s"}
    assert rate.per_s == pytest.approx(800)


def test_the_bar_shows_that_rate_and_no_other(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(console.sys, "stderr", terminal)
    rate = Rate()
    with Progress("score", 1000, rate=rate) as shown:
        rate.update(600, 0.0, 2.0)
        shown.update(600, 3, "part 2")
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"score: .*600/1000 images \[\d\d:\d\d, 3 errors, 300 images/s, 1 s left, part 2\]", last)
    assert terminal.getvalue().count("/s") == terminal.getvalue().count("300 images/s")
