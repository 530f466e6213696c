"""Which rows make which batch: a pure function of seed, epoch, step and rank. Knows neither Ray nor torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deepfake_ray.errors import UserError


@dataclass(frozen=True)
class Position:
    """How far a run has come: all steps before `step` of `epoch` are done, both counted from 0."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Task:
    """The part of an epoch that one Ray Data task reads: some of a rank's training or validation rows."""

    epoch: int
    is_train: bool
    start: int
    """First of this rank's rows of the epoch, counted through its steps, or through its validation rows."""
    stop: int


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The order of a run's rows, for one rank.

    Training rows are permuted anew each epoch and dealt into global batches, which do not depend on the number of
    ranks; the last batch of an epoch is filled up with the first rows of the same permutation. Ranks get contiguous
    slices of a batch, whose sizes differ by at most a row. Validation rows are dealt round-robin, each exactly once,
    so that shards may differ by a row.
    """

    num_train: int
    num_validation: int
    global_batch_size: int
    world_size: int
    rank: int
    seed: int

    def __post_init__(self) -> None:
        if self.global_batch_size < self.world_size:
            raise UserError(
                f"global-batch-size must give each worker an image: got {self.global_batch_size} over "
                f"{self.world_size}; try {2 * self.world_size}, or fewer workers."
            )

    @property
    def batch_size(self) -> int:
        """Images a step on this rank."""
        return self._first_of(self.rank + 1) - self._first_of(self.rank)

    @property
    def share(self) -> float:
        """Of this rank's images in a global batch, times the ranks: DDP divides by them."""
        return self.batch_size * self.world_size / self.global_batch_size

    def _first_of(self, rank: int) -> int:
        """Where the slice of a rank begins in a global batch."""
        return rank * self.global_batch_size // self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return -(-self.num_train // self.global_batch_size)

    @property
    def num_validation_rows(self) -> int:
        """Validation rows of this rank."""
        return len(range(self.rank, self.num_validation, self.world_size))

    def step_rows(self, epoch: int, step: int) -> NDArray[np.int64]:
        """This rank's rows of a training step: int64 (batch_size,), in 0..num_train-1."""
        return self.train_rows(epoch, step * self.batch_size, (step + 1) * self.batch_size)

    def train_rows(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """This rank's rows [start, stop) of an epoch, counted through its steps: int64, in 0..num_train-1."""
        steps, places = np.divmod(np.arange(start, stop), self.batch_size)
        positions = steps * self.global_batch_size + self._first_of(self.rank) + places
        return _permutation(self.seed, epoch, self.num_train)[positions % self.num_train]

    def validation_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """This rank's validation rows [start, stop): int64, in 0..num_validation-1."""
        return np.arange(self.rank, self.num_validation, self.world_size)[start:stop]

    def rows_of(self, task: Task) -> NDArray[np.int64]:
        """The rows that a task reads, in order."""
        if task.is_train:
            return self.train_rows(task.epoch, task.start, task.stop)
        return self.validation_rows(task.start, task.stop)

    def tasks(self, first: Position, num_epochs: int, most_rows: int) -> Iterator[Task]:
        """The run's tasks in order, from `first` on: each epoch's training rows, then its validation rows.

        A task has `most_rows` rows, or so many whole steps that it has no more. A step that is larger is read by
        several tasks, which may work on it at once.
        """
        rows_per_task = most_rows if most_rows < self.batch_size else most_rows - most_rows % self.batch_size
        for epoch in range(first.epoch, num_epochs):
            first_step = first.step if epoch == first.epoch else 0
            ends = self.steps_per_epoch * self.batch_size, self.num_validation_rows
            for is_train, begin, end in ((True, first_step * self.batch_size, ends[0]), (False, 0, ends[1])):
                for start in range(begin, end, rows_per_task):
                    yield Task(epoch, is_train, start, min(start + rows_per_task, end))


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_rows)
