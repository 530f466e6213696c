"""The training driver's and loop's arithmetic, without Ray's workers."""

import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from checkout import ROOT

from deepfake_ray.drivers.train import default_global_batch_size, git_revision
from deepfake_ray.drivers.training_data import look_at_data
from deepfake_ray.errors import UserError
from deepfake_ray.training import history as epochs
from deepfake_ray.training.history import Shard, Tally, best_epoch, problem_of, stops_early
from deepfake_ray.training.reporter import _tag


def history(*aucs):
    return [{"val_auc": auc} for auc in aucs]


def test_best_epoch_is_the_first_of_equals():
    assert best_epoch(history(0.5, 0.9, 0.9, 0.8)) == 1


@pytest.mark.parametrize(
    ("aucs", "patience", "expected"),
    [((), 1, False), ((0.9,), 1, False), ((0.9, 0.8), 1, True), ((0.9, 0.8, 0.91), 2, False), ((0.9, 0.9), 1, True)],
)
def test_early_stopping(aucs, patience, expected):
    assert stops_early(history(*aucs), patience) is expected


@pytest.mark.parametrize(("size", "workers", "expected"), [(32, 1, 128), (64, 3, 128), (224, 1, 32), (224, 64, 128)])
def test_default_batch_has_two_images_for_each_worker(size, workers, expected):
    assert default_global_batch_size(size, workers) == expected


def test_tensorboard_tags():
    assert [_tag(n) for n in ("val_auc", "train_loss", "images_per_s")] == [
        "val/auc",
        "train/loss",
        "train/images_per_s",
    ]


def shard(num_images=10, num_errors=0, loss_sum=5.0, num_correct=7, logits=(1.0, -1.0), labels=(1, 0), wait_s=0.5):
    train = Tally(num_images, num_errors, "a.jpg: empty" if num_errors else "", loss_sum, num_correct, wait_s)
    validation = Tally(num_images=len(logits), wait_s=0.5)
    return Shard(train, validation, np.array(logits, np.float32), np.array(labels, np.int64))


def test_an_epoch_is_summed_over_uneven_ranks_and_divided_once():
    shards = [shard(), shard(30, 2, 3.0, 29, logits=(2.0, 3.0, -0.5), labels=(0, 1, 1))]
    row = epochs.summarise(3, shards, 0.01, 10.0)
    assert (row["epoch"], row["num_workers"], row["num_train_errors"]) == (3, 2, 2)
    assert row["train_loss"] == pytest.approx(8 / 40)
    assert row["train_accuracy"] == pytest.approx(36 / 40)
    # Fakes score 1, 3, -.5 and reals -1, 2: of the six pairs, 1 > -1, 3 > -1, 3 > 2 and -.5 > -1 are right.
    assert row["val_auc"] == pytest.approx(4 / 6)
    assert row["val_accuracy"] == pytest.approx(3 / 5)
    assert row["val_loss"] == pytest.approx(np.mean(np.logaddexp(0, [-1.0, -1.0, 2.0, -3.0, 0.5])), abs=1e-6)
    assert row["images_per_s"] == pytest.approx(45 / 10)
    assert row["data_wait_share"] == pytest.approx(2.0 / 2 / 10)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([shard()], ""),
        ([shard(98, 1), shard(97, 4)], "2.5% of the training images cannot be read, .*; the first: a.jpg: empty"),
        ([shard(loss_sum=float("nan"))], "lower --learning-rate"),
        ([shard(labels=(1, 1))], "no real validation image"),
    ],
)
def test_what_ends_a_run(shards, message):
    found = problem_of(shards, 0.02)
    assert re.search(message, found) if message else not found


def test_the_revision_is_that_of_the_checkout():
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    found = git_revision()
    assert found is None if head.returncode else found.rstrip("+") == head.stdout.strip()


def test_a_split_of_one_class_is_refused():
    rows = [("a", "real", "train"), ("b", "fake", "train"), ("c", "fake", "validation")]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("uri", "label", "split"))}
    table = pa.table({**columns, "source": pa.nulls(3, pa.string()), "group": pa.nulls(3, pa.string())})
    with pytest.raises(UserError, match="both classes in validation: it has 0 real and 1 fake"):
        look_at_data(SimpleNamespace(table=table, other_files=[]))
