"""The only place that builds Ray Datasets: training batches and scoring chunks."""

import itertools
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from deepfake_ray import augment, manifest
from deepfake_ray.errors import JobError
from deepfake_ray.execution import BYTES_PER_TASK, context
from deepfake_ray.facts import read_facts
from deepfake_ray.images import Limits
from deepfake_ray.isolation import Isolated
from deepfake_ray.loading import Loader, decoder_bytes
from deepfake_ray.placement import ScoringPlacement, plan_reading
from deepfake_ray.preparation import Preparation
from deepfake_ray.sampling import Position, Sampler, Task
from deepfake_ray.schema import CLASSES, FACTS, TRAIN, VALIDATION
from deepfake_ray.scorer import DeviceScorer, Report, ScorerSpec
from deepfake_ray.session import cause_of, cluster_nodes

T = TypeVar("T")

IMAGES_PER_TASK = 1024
"""At most, and at most `BYTES_PER_TASK`, in a training block: tasks cost some 10 ms each, blocks memory."""
TASKS_PER_STREAM = 1024
"""Tasks that one execution plans ahead; a long run is some executions."""


# --- auditing

IMAGES_PER_LOOK = 1024


@dataclass(frozen=True)
class ReadFacts:
    """Runs in Ray Data's tasks: what the files of images tell."""

    limits: Limits

    def __call__(self, work: pa.Table) -> pa.Table:
        """A column uri -> `schema.FACTS`, in order."""
        found = read_facts(work["uri"].to_pylist(), self.limits)
        columns = {name: [getattr(image, name) for image in found] for name in FACTS.names}
        return pa.table(columns, schema=FACTS)


def image_facts(uris: pa.ChunkedArray, limits: Limits) -> pa.Table:
    """`schema.FACTS` of images, in the order of `uris`, read by as many tasks as there are CPUs."""
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
    return pa.concat_tables(ray.get(facts.to_arrow_refs()))


# --- training


@dataclass(frozen=True)
class TrainingTables:
    """The training and validation rows as Arrow tables in the object store: every task reads them without copying."""

    train: ray.ObjectRef
    validation: ray.ObjectRef

    @classmethod
    def of(cls, rows: pa.Table) -> "TrainingTables":
        """Store what tasks need of a manifest table."""
        return cls(*(ray.put(_uris_and_labels(rows, split)) for split in (TRAIN, VALIDATION)))


def _uris_and_labels(rows: pa.Table, split: str) -> pa.Table:
    chosen = rows.filter(pa.compute.equal(rows["split"], split))
    labels = np.array([CLASSES.index(label) for label in chosen["label"].to_pylist()], np.int64)
    return pa.table({"uri": chosen["uri"].combine_chunks(), "label": labels})


@dataclass(frozen=True)
class Batch:
    """The rows of one training step, or some validation rows, of one rank."""

    is_train: bool
    images: NDArray[np.uint8]
    """(B, S, S, 3) RGB, augmented if for training; rows that could not be read are left out."""
    labels: NDArray[np.int64]
    """(B,)"""
    num_errors: int
    """Rows left out."""
    first_error: str


@dataclass(frozen=True)
class ReadTask:
    """Runs in Ray Data's tasks: fetch, decode, augment, resize the images of one `Task`."""

    tasks: Sequence[Task]
    sampler: Sampler
    tables: TrainingTables
    preparation: Preparation
    limits: Limits
    recipe: str

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        """`{"id": int64 (1,)}` -> columns image, label, error; a row for each image, in order."""
        task = self.tasks[int(batch["id"][0])]
        if task.is_train:
            rows = self.sampler.train_rows(task.epoch, task.start, task.stop).reshape(-1)
            table = ray.get(self.tables.train)
        else:
            rows = self.sampler.validation_rows(task.start, task.stop)
            table = ray.get(self.tables.validation)
        chosen = table.take(pa.array(rows))
        size = self.preparation.image_size
        images = np.zeros((len(rows), size, size, 3), np.uint8)
        errors = np.full(len(rows), "", dtype=object)
        loader = Loader(limits=self.limits, preparation=self.preparation)
        uris = chosen["uri"].to_pylist()
        seeds = augment.seeds_of(self.sampler.seed, task.epoch, rows)
        places = augment.places(seeds) if task.is_train else None
        for i, image in enumerate(loader.load_all(uris, places=places)):
            if image.error is not None:
                errors[i] = f"{uris[i]}: {image.error}"
            else:
                (images[i],) = image.crops
        if task.is_train:
            for i, augmented in enumerate(augment.RECIPES[self.recipe](images, seeds)):
                images[i] = augmented
        return {"image": images, "label": chosen["label"].to_numpy(), "error": errors.astype(str)}


def training_batches(
    sampler: Sampler,
    tables: TrainingTables,
    preparation: Preparation,
    limits: Limits,
    *,
    recipe: str,
    first: Position,
    num_epochs: int,
    cpus: float,
    label: Mapping[str, str],
) -> Iterator[Batch]:
    """One rank's batches from `first` to the end of the run: each epoch's steps, then its validation rows.

    Each rank streams its own dataset, all epochs as one, so that no epoch starts cold, the order depends on nothing
    but the seed and the number of ranks, and a resumed run begins at exactly the step it needs. (A `streaming_split`
    of one dataset deals blocks out by arrival, drops rows to make shards equal, and begins anew each epoch.)

    Args:
        sampler: says which rows.
        tables: the rows.
        preparation: of the images.
        limits: of the images.
        first: where to begin.
        num_epochs: end of the run.
        cpus: that this rank's tasks may hold at a time.
        label: of the nodes that they keep to; empty: any.
    """
    bytes_per_image = 3 * preparation.image_size**2
    images_per_task = max(1, min(IMAGES_PER_TASK, BYTES_PER_TASK // bytes_per_image))
    everything = sampler.tasks(first, num_epochs, images_per_task)
    while tasks := list(itertools.islice(everything, TASKS_PER_STREAM)):
        with DataContext.current(context(cpus)):
            # Not range or from_arrow, whose own tasks ask for a whole CPU each, which may not be left.
            numbers = [{"id": number} for number in range(len(tasks))]
            rows = ray.data.from_items(numbers, override_num_blocks=len(tasks)).map_batches(
                ReadTask(tasks, sampler, tables, preparation, limits, recipe),
                batch_size=None,
                num_cpus=min(1.0, cpus),
                label_selector=dict(label),
            )
            blocks = rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        for task, block in zip(tasks, blocks, strict=True):
            yield from _batches_of(task, block, sampler.batch_size)


def _batches_of(task: Task, block: dict[str, NDArray[Any]], batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(block["label"]), batch_size):
        rows = slice(start, start + batch_size)
        errors = block["error"][rows]
        readable = errors == ""
        yield Batch(
            is_train=task.is_train,
            images=block["image"][rows][readable],
            labels=block["label"][rows][readable],
            num_errors=int(np.count_nonzero(~readable)),
            first_error=str(errors[~readable][0]) if not readable.all() else "",
        )


# --- scoring


@dataclass(frozen=True)
class Failure:
    """What a scorer says instead of a report, where trying again would not help."""

    cause: str


class _Isolated:
    """An actor: keeps a worker in a process of its own, which it replaces when an image brings it down."""

    def __init__(self, worker: str, spec: ScorerSpec):
        self._worker = Isolated(
            f"deepfake_ray.scorer:{worker}",
            spec,
            timeout_s=spec.image_timeout_s,
            decoder_bytes=decoder_bytes(spec.limits),
        )

    def __call__(self, work: pa.Table) -> dict[str, list[Any]]:
        (chunk,) = work.to_pylist()
        return {"result": [_or_failure(self._worker, manifest.Chunk(**chunk))]}


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
        """One chunk."""
        loaded = work["result"][0]
        return {"result": [loaded if isinstance(loaded, Failure) else _or_failure(self._scorer, loaded)]}


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
