import time

import pytest

from deepfake_ray.images.stopwatch import Stopwatch


def test_seconds_are_added_up_and_taken_once():
    watch = Stopwatch()
    for _ in range(2):
        with watch.at("a"):
            time.sleep(0.02)
    with pytest.raises(KeyError), watch.at("b"):
        raise KeyError
    taken = watch.take()
    assert taken["a"] >= 0.04
    assert 0 <= taken["b"] < taken["a"]
    assert watch.take() == {}
