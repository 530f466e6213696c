"""Runs the tasks that read a rank's training images, in Ray Data."""

import math
from collections.abc import Iterator, Mapping

import ray
from ray.data import DataContext

from deepfake_ray.cluster.ray_data import bytes_ahead, context
from deepfake_ray.training.batches import Block, ReadTask, Run


def read_in_tasks(cpus: float, label: Mapping[str, str], world_size: int) -> Run:
    """Runs the tasks of a rank's `ReadTask` in Ray Data; blocks come in the order of the tasks.

    Each rank streams its own dataset, all epochs as one, so that no epoch starts cold, the order depends on nothing
    but the seed and the number of ranks, and a resumed run begins at exactly the step it needs. (A `streaming_split`
    of one dataset deals blocks out by arrival, drops rows to make shards equal, and begins anew each epoch.)

    Args:
        cpus: that this rank's tasks may hold at a time.
        label: of the nodes that they keep to; empty: any.
        world_size: ranks that share the object store.
    """

    def run(read: ReadTask) -> Iterator[Block]:
        store_bytes = ray.cluster_resources().get("object_store_memory", math.inf) / world_size
        with DataContext.current(context(cpus, bytes_ahead(cpus, read.bytes_per_task, store_bytes))):
            # Not range or from_arrow, whose own tasks ask for a whole CPU each, which may not be left.
            numbers = [{"id": number} for number in range(len(read.tasks))]
            rows = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
                read, batch_size=None, num_cpus=min(1.0, cpus), label_selector=dict(label)
            )
            blocks = rows.iter_batches(
                batch_size=None, batch_format="numpy", prefetch_batches=max(2, read.tasks_per_step)
            )
        yield from blocks

    return run
