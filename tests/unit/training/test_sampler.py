import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_ray.errors import UserError
from deepfake_ray.images import augmentation
from deepfake_ray.training.sampler import Position, Sampler


def samplers(world_size, **options):
    common = {"num_train": 100, "num_validation": 37, "global_batch_size": 12, "seed": 3} | options
    return [Sampler(world_size=world_size, rank=rank, **common) for rank in range(world_size)]


def global_batches(world_size, epoch):
    ranks = samplers(world_size)
    steps = range(ranks[0].steps_per_epoch)
    return np.array([np.concatenate([s.step_rows(epoch, step) for s in ranks]) for step in steps])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_each_row_is_seen_each_epoch_whatever_the_number_of_workers(world_size):
    batches = global_batches(world_size, epoch=0)
    assert batches.shape == (9, 12)  # 100 rows in twelves: the ninth batch is filled up with 8 rows
    assert np.array_equal(batches, global_batches(1, epoch=0))
    flat = batches.reshape(-1)
    assert sorted(flat[:100]) == list(range(100))
    assert np.array_equal(flat[100:], flat[:8])


def test_epochs_differ_and_runs_repeat():
    assert not np.array_equal(global_batches(1, 0), global_batches(1, 1))
    assert np.array_equal(global_batches(2, 5), global_batches(2, 5))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_validation_rows_are_each_seen_once(world_size):
    rows = [s.validation_rows(0, s.num_validation_rows) for s in samplers(world_size)]
    assert sorted(np.concatenate(rows)) == list(range(37))


def rows_of(tasks):
    """(epoch, is_train) -> the tasks' rows of it, which must follow one another without a gap."""
    found = {}
    for task in tasks:
        rows = found.setdefault((task.epoch, task.is_train), [])
        assert not rows or rows[-1] + 1 == task.start
        rows.extend(range(task.start, task.stop))
    return found


@pytest.mark.parametrize(
    ("most_rows", "rows_per_task"),
    [(1, 1), (5, 5), (11, 11), (12, 12), (23, 12), (30, 24), (1000, 996)],  # a step has 12 rows
)
def test_tasks_cover_an_epoch_in_order_in_whole_steps_or_less_than_one(most_rows, rows_per_task):
    (sampler,) = samplers(1)
    tasks = list(sampler.tasks(Position(), 3, most_rows))
    assert [t.epoch for t in tasks] == sorted(t.epoch for t in tasks)
    assert rows_of(tasks) == {
        (epoch, is_train): list(range(9 * 12 if is_train else 37)) for epoch in range(3) for is_train in (True, False)
    }
    assert max(t.stop - t.start for t in tasks if t.is_train) == min(rows_per_task, 9 * 12)
    assert [t for t in tasks if t.epoch >= 2] == list(sampler.tasks(Position(2), 3, most_rows))


@pytest.mark.parametrize("most_rows", [5, 30])
def test_tasks_begin_at_a_step(most_rows):
    (sampler,) = samplers(1)
    rows = rows_of(sampler.tasks(Position(1, 4), 3, most_rows))
    assert rows == {
        (1, True): list(range(4 * 12, 9 * 12)),
        (1, False): list(range(37)),
        (2, True): list(range(9 * 12)),
        (2, False): list(range(37)),
    }


def test_slices_of_a_batch_differ_by_a_row_at_most():
    assert [s.batch_size for s in samplers(5)] == [2, 2, 3, 2, 3]  # 12 rows over 5 ranks


def test_more_workers_than_rows_of_a_step_are_refused():
    with pytest.raises(UserError, match="each worker an image: got 3 over 5; try 10, or fewer workers"):
        samplers(5, global_batch_size=3)


@given(
    num_train=st.integers(1, 60),
    global_batch_size=st.integers(5, 20),
    worlds=st.lists(st.integers(1, 5), min_size=1, max_size=12),
)
def test_an_epoch_is_a_permutation_however_often_workers_come_and_go(num_train, global_batch_size, worlds):
    options = {"num_train": num_train, "global_batch_size": global_batch_size}
    steps_per_epoch = samplers(1, **options)[0].steps_per_epoch
    rows = []
    for step in range(steps_per_epoch):
        ranks = samplers(worlds[step % len(worlds)], **options)
        assert {s.steps_per_epoch for s in ranks} == {steps_per_epoch}
        assert sum(s.share for s in ranks) / len(ranks) == pytest.approx(1)
        rows.extend(np.concatenate([s.step_rows(0, step) for s in ranks]))
    assert sorted(rows[:num_train]) == list(range(num_train))
    assert rows[num_train:] == [rows[i % num_train] for i in range(num_train, len(rows))]


def test_a_worker_may_have_no_validation_rows():
    ranks = samplers(3, num_validation=2)
    assert [s.num_validation_rows for s in ranks] == [1, 1, 0]
    assert [t.is_train for t in ranks[2].tasks(Position(), 1, 100)].count(False) == 0


def test_augmentation_seeds_depend_on_seed_epoch_and_row_alone():
    rows = np.arange(1000)
    seeds = augmentation.seeds_of(0, 0, rows)
    assert len(set(seeds.tolist())) == 1000
    assert np.array_equal(seeds[[7, 3]], augmentation.seeds_of(0, 0, np.array([7, 3])))
    assert not np.any(seeds == augmentation.seeds_of(0, 1, rows))
    assert not np.any(seeds == augmentation.seeds_of(1, 0, rows))


def test_uniform_is_uniform():
    draws = augmentation.uniform(augmentation.seeds_of(0, 0, np.arange(100_000)), 0)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 400  # four standard deviations
    other = augmentation.uniform(augmentation.seeds_of(0, 0, np.arange(100_000)), 1)
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.013


def test_baseline_flips_half_and_turns_half_by_at_most_ten_degrees():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = (255, 0, 0)  # left half red
    image[:, 32:] = (0, 0, 255)
    seeds = augmentation.seeds_of(0, 0, np.arange(2000))
    augmented = list(augmentation.baseline([image] * 2000, seeds))
    assert all(a.shape == image.shape and a.dtype == np.uint8 for a in augmented)
    flipped = [a[32, 8, 2] > 128 for a in augmented]
    turned = [bool((a[0] == 0).all(axis=-1).any()) for a in augmented]  # a black corner in the top row
    assert 0.45 < np.mean(flipped) < 0.55
    assert 0.4 < np.mean(turned) < 0.55
    # At 10 degrees the seam moves by 32 tan 10 = 5.6 px at the top edge.
    seams = [np.flatnonzero(np.abs(np.diff(a[4, 20:44, 0].astype(int))) > 60) + 20 for a in augmented]
    assert all(seam.min() >= 24 and seam.max() <= 39 for seam in seams if len(seam))


def test_robust_changes_the_shares_that_it_names():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(4)] * 500
    seeds = augmentation.seeds_of(0, 0, np.arange(2000))
    found = list(augmentation.robust(pictures, seeds))
    again = list(augmentation.robust(pictures, seeds))
    assert all(image.dtype == np.uint8 and image.shape == (16, 16, 3) for image in found)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    same = [np.array_equal(a, b) for a, b in zip(found, pictures, strict=True)]
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(found, pictures, strict=True)]
    # Neither blurred nor re-saved: .9 * .9 of them, half of these flipped. 4 standard deviations are .04.
    assert abs(np.mean(same) - 0.405) < 0.045
    assert abs(np.mean(mirrored) - 0.405) < 0.045


def test_resaving_loses_what_the_quality_says():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("JPEG", "WEBP"):
        losses = [np.abs(augmentation.resaved(picture, kind, q).astype(int) - picture).mean() for q in (95, 60, 30)]
        assert 0 < losses[0] < losses[1] < losses[2]
