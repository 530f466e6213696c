"""Every row of every batch is what it claims to be: a rank's batches without Ray, whatever happens to the blocks."""

from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from ray.data._internal.output_buffer import BlockOutputBuffer, OutputBlockSizeOption
from ray.data.block import BlockAccessor

from deepfake_ray.cluster import ray_data
from deepfake_ray.cluster.ray_data import BYTES_PER_TASK, bytes_ahead
from deepfake_ray.drivers.file_facts import require_order
from deepfake_ray.errors import ErrorCode, JobError
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.training import batches
from deepfake_ray.training.batches import Batch, TrainingTables, training_batches
from deepfake_ray.training.sampler import Position, Sampler

SIZE = 4
MOST = 60
LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20)
MIB = 1 << 20
BEGIN = Position()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """URIs of the images of each split. A pixel is (row, split, 7); every seventh file is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    uris = {}
    for split, code in (("train", 0), ("validation", 255)):
        uris[split] = [str(folder / f"{split}-{row}.png") for row in range(MOST)]
        for row, uri in enumerate(uris[split]):
            Image.new("RGB", (SIZE, SIZE), (row, code, 7)).save(uri)
            if is_broken(row):
                open(uri, "wb").close()
    return uris


def is_broken(row):
    return row % 7 == 3


def label_of(is_train, row):
    """Real or fake, without a pattern that the order of rows could have."""
    return (row * row // 3 + is_train) % 2


def tables_of(pictures, num_train, num_validation):
    splits = ["train"] * num_train + ["validation"] * num_validation
    rows = [*range(num_train), *range(num_validation)]
    labels = [("real", "fake")[label_of(split == "train", row)] for split, row in zip(splits, rows, strict=True)]
    uris = [pictures[split][row] for split, row in zip(splits, rows, strict=True)]
    order = np.argsort([hash_of(i) for i in range(len(rows))], kind="stable")  # the splits lie mixed in a manifest
    order = sorted(order, key=lambda i: rows[i])
    return TrainingTables.of(pa.table({"uri": uris, "label": labels, "split": splits}).take(pa.array(order)))


def hash_of(number):
    return number * 2654435761 % 2**32


def serial(read):
    """What Ray Data does, in this process."""
    for number in range(len(read.tasks)):
        yield read({"id": np.array([number])})


def cut(block, places):
    edges = sorted({0, len(block["row"]), *(place % (len(block["row"]) + 1) for place in places)})
    for start, stop in pairwise(edges):
        yield {name: column[start:stop] for name, column in block.items()}


def joined(blocks):
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def recut(places, at_once, read):
    """The same rows in the same order, in other blocks: some joined, then cut anywhere, and an empty one between."""
    blocks = list(serial(read))
    for start in range(0, len(blocks), at_once):
        together = joined(blocks[start : start + at_once])
        yield {name: column[:0] for name, column in together.items()}
        yield from cut(together, places)


def all_batches(sampler, tables, run, first=BEGIN, num_epochs=2):
    return training_batches(
        sampler,
        tables,
        Preparation(image_size=SIZE),
        LIMITS,
        recipe="baseline",
        first=first,
        num_epochs=num_epochs,
        run=run,
    )


def check(batch, is_train, epoch, rows):
    """A batch against the rows that it must have, by its pixels, labels and errors."""
    rows = np.asarray(rows)
    readable = rows[[not is_broken(row) for row in rows]]
    assert (batch.is_train, batch.epoch, batch.rows.tolist()) == (is_train, epoch, rows.tolist())
    middle = batch.images[:, SIZE // 2, SIZE // 2]  # the recipe's rotation blackens corners only
    assert middle[:, 1].tolist() == [0 if is_train else 255] * len(readable)
    assert middle[:, 0].tolist() == readable.tolist()
    assert batch.labels.tolist() == [label_of(is_train, row) for row in readable]
    assert batch.num_errors == len(rows) - len(readable)
    assert bool(batch.first_error) == bool(batch.num_errors)
    assert sum(batch.errors_by_code.values()) == batch.num_errors
    assert set(batch.errors_by_code) <= set(ErrorCode)


@given(
    num_train=st.integers(1, MOST),
    num_validation=st.integers(1, MOST),
    batch_size=st.integers(2, 20),
    world=st.integers(1, 5),
    first=st.tuples(st.integers(0, 1), st.integers(0, 3)),
    images_per_task=st.integers(1, 30),
    tasks_per_stream=st.integers(1, 9),
    places=st.lists(st.integers(0, 200), max_size=8),
    at_once=st.integers(1, 4),
)
@example(40, 30, 20, 1, (0, 0), 3, 2, [7], 3)  # a step of several tasks and of several streams
@example(40, 30, 2, 2, (1, 2), 30, 9, [], 1)  # a task of several steps
def test_each_batch_has_the_rows_of_its_step_whatever_ray_data_does_to_blocks(
    pictures, num_train, num_validation, batch_size, world, first, images_per_task, tasks_per_stream, places, at_once
):
    """Ray Data cuts a block that is over 1.5 times its target, so blocks cannot be counted to know what they are."""
    world = min(world, batch_size)
    tables = tables_of(pictures, num_train, num_validation)
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "IMAGES_PER_TASK", images_per_task)
        patch.setattr(batches, "TASKS_PER_STREAM", tasks_per_stream)
        for rank in range(world):
            sampler = Sampler(
                num_train=num_train,
                num_validation=num_validation,
                global_batch_size=batch_size,
                world_size=world,
                rank=rank,
                seed=1,
            )
            begin = Position(first[0], min(first[1], sampler.steps_per_epoch - 1))
            found = all_batches(sampler, tables, partial(recut, places, at_once), begin)
            for epoch in range(begin.epoch, 2):
                for step in range(begin.step if epoch == begin.epoch else 0, sampler.steps_per_epoch):
                    order = np.random.default_rng((1, epoch)).permutation(num_train)
                    whole = order[np.arange(step * batch_size, (step + 1) * batch_size) % num_train]
                    check(next(found), True, epoch, whole[rank * batch_size // world :][: sampler.batch_size])
                left = sampler.num_validation_rows
                while left > 0:
                    batch = next(found)
                    rows = batch.rows
                    check(batch, False, epoch, rows)
                    seen.setdefault(epoch, []).extend(rows.tolist())
                    left -= len(rows)
            assert next(found, None) is None
    for rows in seen.values():
        assert sorted(rows) == list(range(num_validation))


def swapped(blocks):
    blocks[1], blocks[2] = blocks[2], blocks[1]


def cut_and_lost(blocks):
    """What the old pairing by position made of a block that was cut: each half a block of its own."""
    half = len(blocks[0]["row"]) // 2
    blocks[0] = {name: column[:half] for name, column in blocks[0].items()}


def repeated(blocks):
    blocks.insert(1, blocks[0])


def another_split(blocks):
    """Rows of the same numbers, that say what they are."""
    blocks[0] = {**blocks[0], "is_train": ~blocks[0]["is_train"]}


def another_epoch(blocks):
    blocks[0] = {**blocks[0], "epoch": blocks[0]["epoch"] + 1}


def short_column(blocks):
    blocks[0] = {**blocks[0], "label": blocks[0]["label"][:-1]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swapped, r"asked for 5 training rows of epoch 1 \(.*\), got 5 training rows of epoch 1"),
        (cut_and_lost, "asked for 5 training rows of epoch 1 .*, got "),
        (repeated, "asked for 5 training rows of epoch 1 .*, got 5 training rows of epoch 1"),
        (another_split, "asked for 5 training rows of epoch 1 .*, got validation rows of epoch 1"),
        (another_epoch, "asked for 5 training rows of epoch 1 .*, got training rows of epoch 2"),
        (list.pop, "asked for .*, got none"),
        (short_column, r"asked for columns of 5 rows, got some of \[4, 5\]"),
    ],
)
def test_rows_that_are_not_those_of_the_step_are_refused(pictures, monkeypatch, spoil, message):
    monkeypatch.setattr(batches, "IMAGES_PER_TASK", 5)
    sampler = Sampler(num_train=20, num_validation=10, global_batch_size=5, world_size=1, rank=0, seed=0)

    def run(read):
        blocks = list(serial(read))
        spoil(blocks)
        yield from blocks

    with pytest.raises(JobError, match=message):
        list(all_batches(sampler, tables_of(pictures, 20, 10), run, num_epochs=1))


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ((0, True, [1, 2]), True),
        ((0, False, [1, 2]), False),
        ((1, True, [1, 2]), False),
        ((0, True, [2, 1]), False),
        ((0, True, [1, 2, 3]), False),
    ],
)
def test_the_loop_takes_no_batch_that_it_did_not_ask_for(asked, fits):
    nothing = np.empty(0, np.int64)
    batch = Batch(0, True, np.array([1, 2]), np.empty((0, 4, 4, 3), np.uint8), nothing, 2, "broken")
    epoch, is_train, rows = asked
    if fits:
        batch.check(epoch, is_train, np.array(rows))
    else:
        with pytest.raises(JobError, match="got 2 training rows of epoch 1"):
            batch.check(epoch, is_train, np.array(rows))


def reader(image_size, batch_size, num_train=10_000):
    """What reads the first tasks of a run."""
    sampler = Sampler(
        num_train=num_train, num_validation=100, global_batch_size=batch_size, world_size=1, rank=0, seed=0
    )
    preparation = Preparation(image_size=image_size)
    found = []

    def run(read):
        found.append(read)
        yield from ()

    everything = training_batches(
        sampler,
        TrainingTables(None, None),
        preparation,
        LIMITS,
        recipe="baseline",
        first=Position(),
        num_epochs=1,
        run=run,
    )
    with pytest.raises(JobError):
        next(everything)
    return found[0]


@pytest.mark.parametrize(
    ("image_size", "batch_size"),
    # Steps of 192 MiB, which is where Ray Data's own limit is (1.5 times 128 MiB), just below it and above.
    [
        (32, 128),
        (224, 1337),
        (224, 1338),
        (384, 455),
        (384, 456),
        (512, 255),
        (512, 256),
        (600, 187),
        (640, 180),
        (2400, 8),
    ],
)
def test_no_block_is_larger_than_a_task_may_be(image_size, batch_size):
    read = reader(image_size, batch_size)
    assert read.bytes_per_task <= max(BYTES_PER_TASK, 3 * image_size**2)
    sizes = [task.stop - task.start for task in read.tasks if task.is_train]
    assert sum(sizes[: read.tasks_per_step]) >= batch_size > sum(sizes[: read.tasks_per_step - 1])
    # Tasks are not made needlessly small either.
    assert 2 * read.bytes_per_task > BYTES_PER_TASK or max(sizes) == batches.IMAGES_PER_TASK


@pytest.mark.parametrize("rows", [63, 64, 65])
def test_a_block_stays_whole_as_this_project_runs_ray_data(rows):
    """Ray's own buffer, by its limits and by ours: of 64 rows of a target of 64, it cuts from 96 on."""
    row_bytes = 1024
    block = pa.table({"image": [b"x" * row_bytes] * (rows * 3 // 2)})

    def blocks(max_bytes):
        buffer = BlockOutputBuffer(OutputBlockSizeOption.of(target_max_block_size=max_bytes))
        buffer.add_block(block)
        buffer.finalize()
        return [BlockAccessor.for_block(part).num_rows() for part in buffer.iter_ready_blocks()]

    assert (len(blocks(64 * row_bytes)) > 1) == (rows >= 64)
    assert blocks(ray_data.MAX_BLOCK_BYTES) == [rows * 3 // 2]


@pytest.mark.parametrize(
    ("cpus", "bytes_per_task", "store_gib", "expected_mib"),
    [
        (1, 3 * MIB, 7, 256),  # as it was, where little is needed
        (2, 16 * MIB, 7, 256),
        (8, 16 * MIB, 32, 1024),
        (64, 16 * MIB, 100, 8192),
        (64, 16 * MIB, 4, 2048),  # no more than half of the rank's share of the store
        (8, 77 * MIB, 32, 4928),  # an image alone of 5,000 px
        (1, 16 * MIB, 0.25, 128),
    ],
)
def test_reading_ahead_grows_with_the_cpus_and_the_tasks(cpus, bytes_per_task, store_gib, expected_mib):
    assert bytes_ahead(cpus, bytes_per_task, store_gib * 1024 * MIB) == expected_mib * MIB


@pytest.mark.parametrize("cpus", [1, 2, 8, 15, 64])
@pytest.mark.parametrize("image_size", [32, 224, 640, 2000, 4000])
def test_the_limit_never_keeps_a_cpu_from_a_task(cpus, image_size):
    """Ray Data keeps a quarter for blocks handed over; running tasks, and those that are done early, share the rest."""
    read = reader(image_size, 32)
    limit = bytes_ahead(cpus, read.bytes_per_task, 1e15)
    assert 0.75 * limit >= 4 * cpus * read.bytes_per_task


def test_an_image_that_the_audit_gave_up_is_not_touched_again(pictures):
    """A decoder that hangs on an image would keep a training waiting for ever."""
    tables = tables_of(pictures, 4, 3)
    given_up = {pictures["train"][2]: "timeout: took longer than 60 s"}
    rows = pa.table({"uri": pictures["train"][:3], "label": ["real", "fake", "fake"], "split": ["train"] * 3})
    tables = TrainingTables(TrainingTables.of(rows, given_up).train, tables.validation)
    sampler = Sampler(num_train=3, num_validation=3, global_batch_size=3, world_size=1, rank=0, seed=0)
    batch = next(all_batches(sampler, tables, serial))
    assert (len(batch.labels), batch.num_errors, dict(batch.errors_by_code)) == (2, 1, {"timeout": 1})
    assert batch.first_error == f"{pictures['train'][2]}: timeout: took longer than 60 s"


def test_facts_of_files_stay_with_their_files():
    uris = pa.chunked_array([["a", "b"], ["c"]])
    facts = pa.table({"sha256": ["1", "2", "3"], "uri": ["a", "b", "c"]})
    assert require_order(facts, uris).to_pydict() == {"sha256": ["1", "2", "3"]}
    for wrong in (facts.take([1, 0, 2]), facts.slice(0, 2), facts.take([0, 1, 2, 2])):
        with pytest.raises(JobError, match="in the order of the 3 images"):
            require_order(wrong, uris)
