"""How Ray Data executes this project's datasets: its context, and what has to be done beside it."""

import time
from typing import Any

import ray
from ray.data import DataContext, ExecutionResources

from deepfake_ray.cluster.local_ray import is_alone
from deepfake_ray.cluster.ray_internals import actors_of, num_task_events, start_no_helpers

BYTES_PER_TASK = 16 * 1024 * 1024
LEAST_BYTES_AHEAD = 16 * BYTES_PER_TASK
TASKS_AHEAD_PER_CPU = 8
STORE_SHARE = 0.5
"""Of the object store's memory, what reading ahead may take; the rest is for what is in use."""
MAX_BLOCK_BYTES: int | None = None
"""None: what a task returns is one block. With a number (Ray's own is 128 MiB) Ray Data would cut a larger one."""
SECONDS_BETWEEN_STEPS = 0.05, 0.25
"""At least and at most."""
SHARE_TO_SLEEP = 0.125
"""Of the time since a task was last begun or done."""


class Callback:
    """What Ray Data calls in the course of an execution: its `ExecutionCallback`, which is a private class."""

    def before_execution_starts(self, executor: Any) -> None:
        """Called at the beginning."""

    def on_execution_step(self, executor: Any) -> None:
        """Called after each step of the scheduling loop."""

    def after_execution_succeeds(self, executor: Any) -> None:
        """Called at the end."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Called at the end."""


class Breathe(Callback):
    """Makes Ray Data's scheduling loop sleep between its steps; the longer, the longer nothing has happened.

    In 2.60 the loop spins without pause while its output is not wanted yet, which is how it should be most of the
    time in training: it took .6 of a core, and the training loop's interpreter lock, and a third of the throughput
    (benchmarks/results/main_job_2cpu_20261122.md). At 50 steps a second its thread was still in a
    third of a profile's samples, at 10 in a quarter (training_2cpu_20261123.md).
    """

    def __init__(self) -> None:
        self._num_tasks, self._changed_at = -1, 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Called after each step."""
        num_tasks = num_task_events(executor)
        if num_tasks != self._num_tasks:
            self._num_tasks, self._changed_at = num_tasks, time.monotonic()
        shortest, longest = SECONDS_BETWEEN_STEPS
        time.sleep(min(longest, max(shortest, SHARE_TO_SLEEP * (time.monotonic() - self._changed_at))))


class EndActors(Callback):
    """Ends the actors of an execution when it ends.

    Ray Data only forgets them, and they live, and hold their CPUs, for as long as anything else names them: the
    garbage of the execution, or the traceback of a lost node. The next execution would wait for them.
    """

    def __init__(self) -> None:
        self._actors: dict[Any, None] = {}

    def on_execution_step(self, executor: Any) -> None:
        """Called after each step."""
        self._actors.update(dict.fromkeys(actors_of(executor)))

    def after_execution_succeeds(self, executor: Any) -> None:
        """Called at the end."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Called at the end."""
        self.after_execution_succeeds(executor)


def bytes_ahead(cpus: float, bytes_per_task: int, store_bytes: float) -> int:
    """What a rank's tasks may have read before it is needed.

    Without a limit they would read epochs ahead, and take the CPUs that the training could use. With too low a one
    they wait for it: Ray Data keeps a quarter of it for blocks that were handed over, and the blocks of running tasks,
    and of those that are done before their turn, share the rest.

    Args:
        cpus: that the tasks may hold.
        bytes_per_task: of the largest block.
        store_bytes: the rank's share of the cluster's object store.
    """
    return int(min(max(LEAST_BYTES_AHEAD, TASKS_AHEAD_PER_CPU * cpus * bytes_per_task), STORE_SHARE * store_bytes))


def context(cpus: float | None = None, most_bytes: int = LEAST_BYTES_AHEAD) -> DataContext:
    """A fresh DataContext: quiet; and, where `cpus` are given, in order, within them, at most so many bytes ahead."""
    if is_alone():
        start_no_helpers()
    fresh = DataContext.get_current().copy()
    fresh.enable_progress_bars = False
    fresh.print_on_execution_start = False
    fresh.enable_rich_progress_bars = False
    fresh.memory_usage_poll_interval_s = None  # measuring each task's memory cost a tenth of its time
    fresh.execution_no_progress_timeout_s = -1  # work may wait for nodes, or for other jobs
    fresh.target_max_block_size = MAX_BLOCK_BYTES
    fresh.custom_execution_callback_classes = [*fresh.custom_execution_callback_classes, Breathe, EndActors]
    fresh.execution_options.preserve_order = cpus is not None
    if cpus is not None:
        fresh.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=cpus, object_store_memory=most_bytes
        )
    return fresh
