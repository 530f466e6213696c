import numpy as np
import pytest

from deepfake_ray import augment
from deepfake_ray.sampling import Position, Sampler


def samplers(world_size, **options):
    common = {"num_train": 100, "num_validation": 37, "global_batch_size": 12, "seed": 3} | options
    return [Sampler(world_size=world_size, rank=rank, **common) for rank in range(world_size)]


def global_batches(world_size, epoch):
    ranks = samplers(world_size)
    parts = [sampler.train_rows(epoch, 0, sampler.steps_per_epoch) for sampler in ranks]
    return np.concatenate(parts, axis=1)  # (steps, global batch)


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


def test_tasks_cover_an_epoch_in_order_and_resume_where_asked():
    (sampler,) = samplers(1)
    tasks = list(sampler.tasks(Position(), 3, images_per_task=30))
    assert [t.epoch for t in tasks] == sorted(t.epoch for t in tasks)
    first = [t for t in tasks if t.epoch == 0]
    steps = [range(t.start, t.stop) for t in first if t.is_train]
    assert [s for r in steps for s in r] == list(range(9))
    assert all(len(r) == 2 for r in steps[:-1])
    assert [t for t in tasks if t.epoch >= 2] == list(sampler.tasks(Position(2), 3, images_per_task=30))


def test_tasks_begin_at_a_step():
    (sampler,) = samplers(1)
    tasks = list(sampler.tasks(Position(1, 4), 3, images_per_task=30))
    steps = [(t.epoch, step) for t in tasks if t.is_train for step in range(t.start, t.stop)]
    assert steps == [(1, step) for step in range(4, 9)] + [(2, step) for step in range(9)]
    assert sum(t.stop - t.start for t in tasks if not t.is_train and t.epoch == 1) == 37


def test_slices_of_a_batch_differ_by_a_row_at_most():
    assert [s.batch_size for s in samplers(5)] == [2, 2, 3, 2, 3]  # 12 rows over 5 ranks


def test_a_worker_may_have_no_validation_rows():
    ranks = samplers(3, num_validation=2)
    assert [s.num_validation_rows for s in ranks] == [1, 1, 0]
    assert [t.is_train for t in ranks[2].tasks(Position(), 1, 100)].count(False) == 0


def test_augmentation_seeds_depend_on_seed_epoch_and_row_alone():
    rows = np.arange(1000)
    seeds = augment.seeds_of(0, 0, rows)
    assert len(set(seeds.tolist())) == 1000
    assert np.array_equal(seeds[[7, 3]], augment.seeds_of(0, 0, np.array([7, 3])))
    assert not np.any(seeds == augment.seeds_of(0, 1, rows))
    assert not np.any(seeds == augment.seeds_of(1, 0, rows))


def test_uniform_is_uniform():
    draws = augment.uniform(augment.seeds_of(0, 0, np.arange(100_000)), 0)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 400  # four standard deviations
    other = augment.uniform(augment.seeds_of(0, 0, np.arange(100_000)), 1)
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.013


def test_baseline_flips_half_and_turns_half_by_at_most_ten_degrees():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = (255, 0, 0)  # left half red
    image[:, 32:] = (0, 0, 255)
    seeds = augment.seeds_of(0, 0, np.arange(2000))
    augmented = list(augment.baseline([image] * 2000, seeds))
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
    seeds = augment.seeds_of(0, 0, np.arange(2000))
    found = list(augment.robust(pictures, seeds))
    again = list(augment.robust(pictures, seeds))
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
        losses = [np.abs(augment.resaved(picture, kind, q).astype(int) - picture).mean() for q in (95, 60, 30)]
        assert 0 < losses[0] < losses[1] < losses[2]
