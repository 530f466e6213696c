import pytest

from deepfake_ray import progress
from deepfake_ray.progress import Progress, duration


def test_a_log_gets_lines_with_rate_errors_and_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
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
