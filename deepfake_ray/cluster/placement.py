"""The cluster's resources -> workers, actors and CPUs for each stage. Pure arithmetic; knows no Ray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deepfake_ray.errors import UserError

DATA_LABEL: Mapping[str, str] = {"deepfake-ray/work": "data"}
"""The label of nodes that fetch and decode for GPUs. Where no node has it, all of them do."""


class ClusterTooSmallError(UserError):
    """The nodes that are there do not suffice."""

    def __init__(self, message: str, bundles: Sequence[Mapping[str, float]]):
        super().__init__(message)
        self.bundles = bundles
        """What an autoscaler is to be asked for: resources, each on one node."""


@dataclass(frozen=True)
class Node:
    """The logical resources of one node."""

    num_cpus: float
    num_gpus: float = 0.0
    has_data_label: bool = False
    """Whether it has `DATA_LABEL`."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlacement:
    """Who gets what in training. CPUs not given to workers are Ray Data's, or it would wait for ever."""

    num_workers: int
    """That there may be; as many as there must be, unless the number is elastic."""
    min_workers: int
    use_gpu: bool
    cpus_per_worker: float
    torch_threads: int
    """Threads a worker computes with: a node's CPUs are shared by its workers only, not by decoding, which fills
    the gaps."""
    data_cpus_per_worker: float
    """CPUs that the data tasks of one worker may hold at a time."""
    data_label: Mapping[str, str] = field(default_factory=dict)
    """Which nodes the data tasks keep to; empty: any."""


@dataclass(frozen=True, kw_only=True)
class ScoringPlacement:
    """Who gets what in scoring.

    On CPUs each actor fetches, decodes and computes by itself with one thread, so actors may hold every CPU. On GPUs
    an actor only computes, and loaders on the other CPUs of the cluster fetch and decode for it.
    """

    use_gpu: bool
    num_actors: int
    cpus_per_actor: float
    num_loaders: int = 0
    cpus_per_loader: float = 1.0
    loader_label: Mapping[str, str] = field(default_factory=dict)
    """Which nodes the loaders keep to; empty: any."""


def _use_gpu(nodes: Sequence[Node], use_gpu: str) -> bool:
    if not nodes:
        bundle = {"CPU": 1.0, "GPU": 1.0} if use_gpu == "yes" else {"CPU": 1.0}
        raise ClusterTooSmallError("A job needs a node with CPUs: the cluster has none; add one.", [bundle])
    has_gpu = any(node.num_gpus >= 1 for node in nodes)
    if use_gpu == "yes" and not has_gpu:
        message = "use-gpu yes needs a GPU in the cluster: there is none; use --use-gpu auto."
        raise ClusterTooSmallError(message, [{"GPU": 1.0}])
    return has_gpu and use_gpu != "no"


def _data_nodes(nodes: Sequence[Node]) -> tuple[Sequence[Node], Mapping[str, str]]:
    """The nodes that fetch and decode for GPUs, and the label that data tasks ask for."""
    labelled = [node for node in nodes if node.has_data_label]
    return (labelled, DATA_LABEL) if labelled else (nodes, {})


def plan_reading(nodes: Sequence[Node]) -> tuple[float, Mapping[str, str]]:
    """CPUs for tasks that read files while nothing else runs, and the label of the nodes that they keep to."""
    data_nodes, label = _data_nodes(nodes)
    return sum(node.num_cpus for node in data_nodes), label


DATA_SHARE = 0.25
"""Of a CPU node's CPUs, what reading and decoding keep; at least one CPU, or half of a single one."""
CPUS_PER_GPU_WORKER = 1.0
"""A GPU's worker only launches kernels; the other CPUs decode for it."""


def plan_training(nodes: Sequence[Node], workers: tuple[int, int] | None, use_gpu: str) -> TrainingPlacement:
    """Place training workers.

    Args:
        nodes: the alive nodes.
        workers: the least and the most, as asked, or None: one a GPU, else one a CPU node. The cluster must hold the
            least; as it grows and shrinks, one a GPU or CPU node is used, up to the most.
        use_gpu: auto, yes or no.

    Raises:
        ClusterTooSmallError: more workers than the cluster can hold.
        UserError: more than a CPU node can hold.
    """
    if _use_gpu(nodes, use_gpu):
        return _plan_gpu_training(nodes, workers)
    smallest = min(node.num_cpus for node in nodes)
    least, most = workers or (len(nodes), len(nodes))
    per_node = math.ceil(least / len(nodes))
    kept = max(1.0, DATA_SHARE * smallest) if smallest > 1 else smallest / 2
    cpus = _floor((smallest - kept) / per_node)
    if most > least:
        # So many CPUs that no further worker fits on a node: Ray would put one there, and leave none for the data.
        cpus = max(cpus, (math.floor(10 * smallest / (per_node + 1)) + 1) / 10)
    if cpus < MIN_CPUS or per_node * cpus > smallest - MIN_CPUS:
        raise UserError(
            f"num-workers must fit the CPUs: {least} workers on {len(nodes)} nodes of {smallest:g} CPUs leave less "
            f"than {MIN_CPUS} CPUs for each, {kept:g} a node being kept for the data; lower it."
        )
    data = (smallest - per_node * cpus) / per_node
    return TrainingPlacement(
        num_workers=most,
        min_workers=least,
        use_gpu=False,
        cpus_per_worker=cpus,
        torch_threads=max(1, int(smallest) // per_node),
        data_cpus_per_worker=_floor(data),
    )


def _plan_gpu_training(nodes: Sequence[Node], workers: tuple[int, int] | None) -> TrainingPlacement:
    hosts = [node for node in nodes if node.num_gpus >= 1]
    slots = sum(int(node.num_gpus) for node in hosts)
    least, most = workers or (slots, slots)
    if least > slots:
        message = f"num-workers must not exceed the GPUs: got {least}, the cluster has {slots}; lower it."
        raise ClusterTooSmallError(message, [{"GPU": 1.0}] * least)
    now = min(most, slots)
    per_node = max(int(node.num_gpus) for node in hosts)
    cpus = min(CPUS_PER_GPU_WORKER, min(node.num_cpus / node.num_gpus for node in hosts) / 2)
    data_nodes, label = _data_nodes(nodes)
    workers_there = min(now, sum(int(node.num_gpus) for node in data_nodes))
    data_cpus = sum(node.num_cpus for node in data_nodes) - workers_there * cpus
    return TrainingPlacement(
        num_workers=most,
        min_workers=least,
        use_gpu=True,
        cpus_per_worker=cpus,
        torch_threads=max(1, int(min(node.num_cpus for node in hosts)) // per_node),
        data_cpus_per_worker=_floor(data_cpus / now),
        data_label=label,
    )


MIN_CPUS = 0.1


def _floor(cpus: float) -> float:
    """Down to a whole number of CPUs, or to a tenth below one."""
    return float(int(cpus)) if cpus >= 1 else math.floor(cpus * 10 + 1e-9) / 10


def plan_scoring(nodes: Sequence[Node], num_workers: int | None, use_gpu: str) -> ScoringPlacement:
    """Place scoring actors: one a GPU and loaders on the CPUs that are left, or one a CPU.

    Args:
        nodes: the alive nodes.
        num_workers: of the actors that compute, as asked, or None.
        use_gpu: auto, yes or no.

    Raises:
        ClusterTooSmallError: more actors than the cluster can hold.
    """
    if not _use_gpu(nodes, use_gpu):
        slots = sum(int(node.num_cpus) for node in nodes) or 1
        actors = _that_fit(num_workers, slots, "CPU")
        cpus = _floor(min(1.0, *(node.num_cpus for node in nodes)))
        return ScoringPlacement(use_gpu=False, num_actors=actors, cpus_per_actor=cpus)
    hosts = [node for node in nodes if node.num_gpus >= 1]
    actors = _that_fit(num_workers, sum(int(node.num_gpus) for node in hosts), "GPU")
    cpus = _floor(min(CPUS_PER_GPU_WORKER, min(node.num_cpus / int(node.num_gpus) for node in hosts) / 2))
    data_nodes, label = _data_nodes(nodes)
    left = [node.num_cpus - int(node.num_gpus) * cpus for node in data_nodes]
    loaders, each = sum(int(cpus_left) for cpus_left in left), 1.0
    if not loaders:  # small nodes: a part of a CPU on each
        each = _floor(min(cpus_left for cpus_left in left if cpus_left > 0))
        loaders = len(left)
    return ScoringPlacement(
        use_gpu=True,
        num_actors=actors,
        cpus_per_actor=cpus,
        num_loaders=loaders,
        cpus_per_loader=each,
        loader_label=label,
    )


def _that_fit(asked: int | None, slots: int, kind: str) -> int:
    if asked is not None and asked > slots:
        message = f"num-workers must not exceed the {kind}s: got {asked}, the cluster has {slots}; lower it."
        raise ClusterTooSmallError(message, [{kind: 1.0}] * asked)
    return asked or slots
