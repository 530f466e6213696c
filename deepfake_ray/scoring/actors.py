"""The actors of a scoring run, and the Ray Dataset of chunks that they score."""

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from deepfake_ray.cluster.placement import ScoringPlacement
from deepfake_ray.cluster.ray_data import context
from deepfake_ray.cluster.session import cause_of
from deepfake_ray.data import manifest
from deepfake_ray.errors import JobError
from deepfake_ray.images.loading import decoder_bytes
from deepfake_ray.processes.isolation import Isolated
from deepfake_ray.scoring.spec import Report, ScorerSpec
from deepfake_ray.scoring.worker import DeviceScorer

T = TypeVar("T")


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
