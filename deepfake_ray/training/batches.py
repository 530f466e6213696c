"""A rank's rows, read by tasks -> blocks -> the batches of its steps, each checked to be of the rows it should be."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from deepfake_ray.cluster.ray_data import BYTES_PER_TASK
from deepfake_ray.errors import JobError
from deepfake_ray.images import augmentation
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.loading import Loader
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.schema import CLASSES, TRAIN, VALIDATION
from deepfake_ray.training.sampler import Position, Sampler, Task

IMAGES_PER_TASK = 1024
"""At most, and at most `BYTES_PER_TASK`, in a training block: tasks cost some 10 ms each, blocks memory."""
TASKS_PER_STREAM = 1024
"""Tasks that one execution plans ahead; a long run is some executions."""

Block = dict[str, NDArray[Any]]
"""Some rows as columns: image uint8 (B, S, S, 3), label int64, error str ("" = readable), and what row of what each
is: epoch int64, is_train bool, row int64 of its split's table. Each (B,)."""
Run = Callable[["ReadTask"], Iterator[Block]]
"""Calls a `ReadTask` for each of its tasks; blocks come in their order, but may have been cut or joined."""


@dataclass(frozen=True)
class TrainingTables:
    """The training and validation rows: Arrow tables, or references to them, which every task reads without copying."""

    train: pa.Table | ray.ObjectRef
    validation: pa.Table | ray.ObjectRef

    @classmethod
    def of(cls, rows: pa.Table, given_up: Mapping[str, str] = MappingProxyType({})) -> "TrainingTables":
        """What tasks need of a manifest table; images that are `given_up` (URI -> why) are not touched."""
        return cls(*(_columns(rows, split, given_up) for split in (TRAIN, VALIDATION)))

    def shared(self) -> "TrainingTables":
        """The same, in the object store."""
        return TrainingTables(ray.put(self.train), ray.put(self.validation))

    def split(self, is_train: bool) -> pa.Table:
        """Columns uri, label and given_up of the training or the validation rows."""
        table = self.train if is_train else self.validation
        return ray.get(table) if isinstance(table, ray.ObjectRef) else table


def _columns(rows: pa.Table, split: str, given_up: Mapping[str, str]) -> pa.Table:
    chosen = rows.filter(pa.compute.equal(rows["split"], split))
    labels = np.array([CLASSES.index(label) for label in chosen["label"].to_pylist()], np.int64)
    reasons = pa.array([given_up.get(uri) for uri in chosen["uri"].to_pylist()], pa.string())
    return pa.table({"uri": chosen["uri"].combine_chunks(), "label": labels, "given_up": reasons})


@dataclass(frozen=True)
class Batch:
    """The rows of one training step, or some validation rows, of one rank."""

    epoch: int
    is_train: bool
    rows: NDArray[np.int64]
    """Of the split's table, those that could not be read included."""
    images: NDArray[np.uint8]
    """(B, S, S, 3) RGB, augmented if for training; rows that could not be read are left out."""
    labels: NDArray[np.int64]
    """(B,)"""
    num_errors: int
    """Rows left out."""
    first_error: str
    errors_by_code: Mapping[str, int] = field(default_factory=dict)

    def check(self, epoch: int, is_train: bool, rows: NDArray[np.int64]) -> None:
        """Whether these are the rows that were asked for.

        Raises:
            JobError: they are not. What follows would be learned from, or measured on, other images.
        """
        if (self.epoch, self.is_train) != (epoch, is_train) or not np.array_equal(self.rows, rows):
            raise _mismatch(_named(epoch, is_train, rows), _named(self.epoch, self.is_train, self.rows))


def _named(epoch: int, is_train: bool, rows: NDArray[np.int64]) -> str:
    first = ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
    return f"{len(rows):,} {'training' if is_train else 'validation'} rows of epoch {epoch + 1} ({first})"


def _mismatch(asked: str, came: str) -> JobError:
    return JobError(
        f"A batch must be of the rows that its step asks for: asked for {asked}, got {came}. This is a fault of the "
        "program, and nothing was done with the batch; please report it with the command and the version of Ray."
    )


@dataclass(frozen=True)
class ReadTask:
    """Fetch, decode, augment, resize the images of one `Task`."""

    tasks: Sequence[Task]
    sampler: Sampler
    tables: TrainingTables
    preparation: Preparation
    limits: Limits
    recipe: str

    @property
    def bytes_per_task(self) -> int:
        """Of pixels, in the largest block."""
        return max(task.stop - task.start for task in self.tasks) * bytes_per_image(self.preparation)

    @property
    def tasks_per_step(self) -> int:
        """How many tasks a training step takes at most, where one does not do."""
        return -(-self.sampler.batch_size // max(task.stop - task.start for task in self.tasks))

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> Block:
        """`{"id": int64 (1,)}`, the task's number -> a row for each image, in order."""
        task = self.tasks[int(batch["id"][0])]
        rows = self.sampler.rows_of(task)
        chosen = self.tables.split(task.is_train).take(pa.array(rows))
        size = self.preparation.image_size
        images = np.zeros((len(rows), size, size, 3), np.uint8)
        errors, codes = (np.full(len(rows), "", dtype=object) for _ in range(2))
        loader = Loader(limits=self.limits, preparation=self.preparation)
        uris, given_up = chosen["uri"].to_pylist(), chosen["given_up"].to_pylist()
        seeds = augmentation.seeds_of(self.sampler.seed, task.epoch, rows)
        places = augmentation.places(seeds) if task.is_train else None
        wanted = [i for i, reason in enumerate(given_up) if reason is None]
        for i in set(range(len(rows))) - set(wanted):
            errors[i], codes[i] = f"{uris[i]}: {given_up[i]}", given_up[i].partition(":")[0]
        loaded = loader.load_all([uris[i] for i in wanted], places=places and [places[i] for i in wanted])
        for i, image in zip(wanted, loaded, strict=True):
            if image.error is not None:
                errors[i], codes[i] = f"{uris[i]}: {image.error}", str(image.error.code)
            else:
                (images[i],) = image.crops
        if task.is_train:
            for i, augmented in enumerate(augmentation.RECIPES[self.recipe](images, seeds)):
                images[i] = augmented
        return {
            "image": images,
            "label": chosen["label"].to_numpy(),
            "error": errors.astype(str),
            "code": codes.astype(str),
            "epoch": np.full(len(rows), task.epoch),
            "is_train": np.full(len(rows), task.is_train),
            "row": rows,
        }


def bytes_per_image(preparation: Preparation) -> int:
    """Of prepared pixels."""
    return 3 * preparation.image_size**2


def training_batches(
    sampler: Sampler,
    tables: TrainingTables,
    preparation: Preparation,
    limits: Limits,
    *,
    recipe: str,
    first: Position,
    num_epochs: int,
    run: Run,
) -> Iterator[Batch]:
    """One rank's batches from `first` to the end of the run: each epoch's steps, then its validation rows.

    Which rows make a batch is the sampler's word, not that of the blocks that come: those may hold several steps, or a
    part of one, and are taken apart and put together by what each row says it is.

    Args:
        sampler: says which rows.
        tables: the rows.
        preparation: of the images.
        limits: of the images.
        recipe: of the augmentation.
        first: where to begin.
        num_epochs: end of the run.
        run: executes the tasks.

    Raises:
        JobError: the rows that came are not those that a batch must have.
    """
    images_per_task = max(1, min(IMAGES_PER_TASK, BYTES_PER_TASK // bytes_per_image(preparation)))
    everything = sampler.tasks(first, num_epochs, images_per_task)

    def blocks() -> Iterator[Block]:
        while tasks := list(islice(everything, TASKS_PER_STREAM)):
            yield from run(ReadTask(tasks, sampler, tables, preparation, limits, recipe))

    rows = _Rows(blocks())
    for epoch in range(first.epoch, num_epochs):
        for step in range(first.step if epoch == first.epoch else 0, sampler.steps_per_epoch):
            yield rows.batch(epoch, True, sampler.step_rows(epoch, step))
        for start in range(0, sampler.num_validation_rows, sampler.batch_size):
            yield rows.batch(epoch, False, sampler.validation_rows(start, start + sampler.batch_size))


class _Rows:
    """The rows of blocks, one after the other, wherever the blocks were cut."""

    def __init__(self, blocks: Iterator[Block]):
        self._blocks = blocks
        self._block: Block = {}
        self._used = self._length = 0

    def batch(self, epoch: int, is_train: bool, rows: NDArray[np.int64]) -> Batch:
        """The next rows, which must be these."""
        pieces = list(self._take(len(rows)))
        found = {name: _joined([piece[name] for piece in pieces]) for name in ("epoch", "is_train", "row")}
        if not (np.all(found["epoch"] == epoch) and np.all(found["is_train"] == is_train)):
            came = zip(found["epoch"].tolist(), found["is_train"].tolist(), strict=True)
            kinds = [
                f"{'training' if train else 'validation'} rows of epoch {e + 1}" for e, train in dict.fromkeys(came)
            ]
            raise _mismatch(_named(epoch, is_train, rows), " and ".join(kinds))
        errors = _joined([piece["error"] for piece in pieces])
        codes = _joined([piece["code"] for piece in pieces])
        readable = errors == ""
        batch = Batch(
            epoch=epoch,
            is_train=is_train,
            rows=found["row"],
            # Indexing copies, so that torch may own the pixels.
            images=_joined([piece["image"][piece["error"] == ""] for piece in pieces]),
            labels=_joined([piece["label"] for piece in pieces])[readable],
            num_errors=int(np.count_nonzero(~readable)),
            first_error=str(errors[~readable][0]) if not readable.all() else "",
            errors_by_code=Counter(codes[~readable].tolist()),
        )
        batch.check(epoch, is_train, rows)
        return batch

    def _take(self, number: int) -> Iterator[Block]:
        while number:
            if self._used == self._length:
                self._next_block(number)
                continue
            rows = slice(self._used, min(self._used + number, self._length))
            yield {name: column[rows] for name, column in self._block.items()}
            number -= rows.stop - rows.start
            self._used = rows.stop

    def _next_block(self, missing: int) -> None:
        block = next(self._blocks, None)
        if block is None:
            raise _mismatch(f"{missing:,} rows more", "none")
        lengths = {len(column) for column in block.values()}
        self._block, self._used, self._length = block, 0, len(block["row"])
        if lengths != {self._length}:
            raise _mismatch(f"columns of {self._length:,} rows", f"some of {sorted(lengths)}")


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
