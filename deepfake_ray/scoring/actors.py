"""The only place that builds Ray Datasets: facts of files, training blocks and scoring chunks."""

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from deepfake_ray.cluster.placement import ScoringPlacement, plan_reading
from deepfake_ray.cluster.ray_data import bytes_ahead, context
from deepfake_ray.cluster.session import cause_of, cluster_nodes
from deepfake_ray.data import manifest
from deepfake_ray.errors import JobError
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.facts import read_facts
from deepfake_ray.images.loading import decoder_bytes
from deepfake_ray.processes.isolation import Isolated
from deepfake_ray.schema import FACTS
from deepfake_ray.scoring.worker import DeviceScorer, Report, ScorerSpec
from deepfake_ray.training.batches import Block, ReadTask, Run

T = TypeVar("T")


# --- auditing

IMAGES_PER_LOOK = 1024


@dataclass(frozen=True)
class ReadFacts:
    """Runs in Ray Data's tasks: what the files of images tell."""

    limits: Limits

    def __call__(self, work: pa.Table) -> pa.Table:
        """A column uri -> `schema.FACTS` and the column uri, in order."""
        found = read_facts(work["uri"].to_pylist(), self.limits)
        columns = {name: [getattr(image, name) for image in found] for name in FACTS.names}
        return pa.table(columns, schema=FACTS).append_column("uri", work["uri"])


def image_facts(uris: pa.ChunkedArray, limits: Limits) -> pa.Table:
    """`schema.FACTS` of images, in the order of `uris`, read by as many tasks as there are CPUs.

    Raises:
        JobError: what came back is not of these images in this order.
    """
    cpus, label = plan_reading(cluster_nodes())
    table = pa.table({"uri": uris})
    blocks = [table.slice(start, IMAGES_PER_LOOK) for start in range(0, len(table), IMAGES_PER_LOOK)]
    with DataContext.current(context(cpus)):
        facts = ray.data.from_arrow(blocks).map_batches(
            ReadFacts(limits),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=min(1.0, cpus),
            label_selector=dict(label),
        )
    return in_order(pa.concat_tables(ray.get(facts.to_arrow_refs())), table["uri"])


def in_order(facts: pa.Table, uris: pa.ChunkedArray) -> pa.Table:
    """Facts without their column uri, which must be `uris`: what follows pairs them with other columns by position."""
    if not facts["uri"].equals(uris):
        raise JobError(
            f"The facts of files must be in the order of the {len(uris):,} images: {len(facts):,} came, or in another; "
            "this is a fault of the program."
        )
    return facts.drop_columns("uri")


# --- training


def in_tasks(cpus: float, label: Mapping[str, str], world_size: int) -> Run:
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


# --- scoring


@dataclass(frozen=True)
class Failure:
    """What a scorer says instead of a report, where trying again would not help."""

    cause: str


class _Isolated:
    """An actor: keeps a worker in a process of its own, which it replaces when an image brings it down."""

    def __init__(self, worker: str, spec: ScorerSpec):
        self._worker = Isolated(
            f"deepfake_ray.scoring.worker:{worker}",
            spec,
            timeout_s=spec.image_timeout_s,
            decoder_bytes=decoder_bytes(spec.limits),
        )

    def __call__(self, work: pa.Table) -> dict[str, list[Any]]:
        return {"result": [_or_failure(self._worker, manifest.Chunk(**chunk)) for chunk in work.to_pylist()]}


def _or_failure(function: Callable[[T], Any], work: T) -> Any:
    # Not raised: Ray Data could not tell it from the loss of a node, of which a run must not die.
    try:
        return function(work)
    except Exception as error:
        return Failure(cause_of(error))


class LoadAndScore(_Isolated):
    """Chunks -> reports, on a CPU."""

    def __init__(self, spec: ScorerSpec):
        super().__init__("ChunkScorer", spec)


class Load(_Isolated):
    """Chunks -> loaded chunks, on a CPU."""

    def __init__(self, spec: ScorerSpec):
        super().__init__("ChunkLoader", spec)


class Score:
    """Loaded chunks -> reports, on a GPU."""

    def __init__(self, spec: ScorerSpec):
        self._scorer = DeviceScorer(spec)

    def __call__(self, work: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """One chunk, or however many Ray Data hands over."""
        return {
            "result": [
                loaded if isinstance(loaded, Failure) else _or_failure(self._scorer, loaded)
                for loaded in work["result"]
            ]
        }


def scoring_dataset(
    chunks: Sequence[manifest.Chunk], spec: ScorerSpec, placement: ScoringPlacement
) -> ray.data.Dataset:
    """Chunks of a manifest, scored by pools of actors when it is read.

    The chunks are blocks of their own, so that all actors work; the actor that scores a chunk writes its file itself,
    so that no prediction travels between processes, and on CPUs no pixel does. Actors that are lost are started again
    wherever there is room. A chunk that was with one of them is left out: it must not wait for a node that may never
    come back.
    """

    def pool(number: int) -> ActorPoolStrategy:
        return ActorPoolStrategy(size=min(number, len(chunks)))

    common: dict[str, Any] = {"fn_constructor_kwargs": {"spec": spec}, "max_task_retries": 0}
    without_lost_chunks = context()
    without_lost_chunks.max_errored_blocks = -1
    with DataContext.current(without_lost_chunks), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # max_task_retries has no other place yet
        # Not from_arrow, which has tasks look at its blocks.
        work = ray.data.from_items([asdict(chunk) for chunk in chunks], override_num_blocks=len(chunks))
        actors = {**common, "compute": pool(placement.num_actors), "num_cpus": placement.cpus_per_actor}
        if not placement.num_loaders:
            return work.map_batches(LoadAndScore, batch_size=None, batch_format="pyarrow", **actors)
        loaded = work.map_batches(
            Load,
            batch_size=None,
            batch_format="pyarrow",
            compute=pool(placement.num_loaders),
            num_cpus=placement.cpus_per_loader,
            label_selector=dict(placement.loader_label),
            **common,
        )
        gpus = 1 if placement.use_gpu else 0
        # A GPU needs a batch size; a block is one chunk.
        return loaded.map_batches(Score, batch_size=1, batch_format="numpy", num_gpus=gpus, **actors)


def reports_of(dataset: ray.data.Dataset) -> Generator[Report]:
    """What the scorers say of each chunk, as they are done; nothing of chunks that were lost with a scorer.

    Raises:
        JobError: a scorer failed, not through an image: the storage of the output, or the memory.
    """

    def failed(cause: str) -> JobError:
        return JobError(f"a scorer failed: {cause}; what is written stays, and --resume goes on from there")

    try:
        for row in dataset.iter_rows():
            if isinstance(row["result"], Failure):
                raise failed(row["result"].cause)
            yield row["result"]
    except ray.exceptions.ObjectLostError:
        return  # a node took the reports of its chunks along
    except ray.exceptions.RayError as error:
        raise failed(cause_of(error)) from error
