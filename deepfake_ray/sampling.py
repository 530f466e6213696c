"""Which rows make which batch: a pure function of seed, epoch, step and rank. Knows neither Ray nor torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Position:
    """How far a run has come: all steps before `step` of `epoch` are done, both counted from 0."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Task:
    """The part of an epoch that one Ray Data task reads: some whole training steps, or validation rows."""

    epoch: int
    is_train: bool
    start: int
    """First step of a training task; first of this rank's rows of a validation task."""
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

    @property
    def batch_size(self) -> int:
        """Images a step on this rank."""
        return self._first_of(self.rank + 1) - self._first_of(self.rank)

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

    def train_rows(self, epoch: int, first_step: int, last_step: int) -> NDArray[np.int64]:
        """This rank's rows of the steps [first_step, last_step): int64 (steps, batch_size), in 0..num_train-1."""
        order = _permutation(self.seed, epoch, self.num_train)
        steps = np.arange(first_step, last_step)[:, None] * self.global_batch_size
        positions = steps + np.arange(self._first_of(self.rank), self._first_of(self.rank + 1))
        return order[positions % self.num_train]

    def validation_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """This rank's validation rows [start, stop): int64, in 0..num_validation-1."""
        return np.arange(self.rank, self.num_validation, self.world_size)[start:stop]

    def tasks(self, first: Position, num_epochs: int, images_per_task: int) -> Iterator[Task]:
        """The run's tasks in order, from `first` on: each epoch's training steps, then its validation rows."""
        steps_per_task = max(1, images_per_task // self.batch_size)
        for epoch in range(first.epoch, num_epochs):
            first_step = first.step if epoch == first.epoch else 0
            for start in range(first_step, self.steps_per_epoch, steps_per_task):
                yield Task(epoch, True, start, min(start + steps_per_task, self.steps_per_epoch))
            for start in range(0, self.num_validation_rows, images_per_task):
                yield Task(epoch, False, start, min(start + images_per_task, self.num_validation_rows))


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_rows)
