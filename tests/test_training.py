"""The training driver's and loop's arithmetic, without Ray's workers."""

import numpy as np
import pytest

from deepfake_ray.trainer import best_epoch, learning_rate_factor, stops_early
from deepfake_ray.training import _tag, default_global_batch_size


def history(*aucs):
    return [{"val_auc": auc} for auc in aucs]


def test_learning_rate_rises_linearly_then_falls_along_a_cosine():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)  # half way of the remaining 90 steps
    assert factors[99] < 0.001
    assert learning_rate_factor(100, 100, 0.1) == pytest.approx(0)
    assert learning_rate_factor(0, 100, 0.0) == 1.0


def test_best_epoch_is_the_first_of_equals():
    assert best_epoch(history(0.5, 0.9, 0.9, 0.8)) == 1


@pytest.mark.parametrize(
    ("aucs", "patience", "expected"),
    [((), 1, False), ((0.9,), 1, False), ((0.9, 0.8), 1, True), ((0.9, 0.8, 0.91), 2, False), ((0.9, 0.9), 1, True)],
)
def test_early_stopping(aucs, patience, expected):
    assert stops_early(history(*aucs), patience) is expected


@pytest.mark.parametrize(("size", "workers", "expected"), [(32, 1, 128), (64, 3, 129), (224, 1, 32), (224, 64, 64)])
def test_default_batch_divides_among_the_workers(size, workers, expected):
    assert default_global_batch_size(size, workers) == expected


def test_tensorboard_tags():
    assert [_tag(n) for n in ("val_auc", "train_loss", "images_per_s")] == [
        "val/auc",
        "train/loss",
        "train/images_per_s",
    ]
