"""Ray's private parts: the one module that names them. All are of Ray 2.60, to which `RAY_VERSION` pins the jobs.

No job depends on them. Each is looked up when it is used; where it is gone or has changed, its function says so in one
warning and the job goes on as if there were no such function. What that means is told with each, and to the user. The
tests of this module ask of each whether it still takes effect, to be run first when the pin is moved.
"""

import inspect
from collections.abc import Iterable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import ray
from ray.data import ExecutionResources

from deepfake_ray.console import Dispensable
from deepfake_ray.storage import files

RAY_VERSION = "2.60.0"
"""The one that pyproject.toml pins."""
HEAD = "node:__internal_head__"
"""The resource that only a cluster's head has. Without it: tasks that ask for no CPU may run on the head as well."""
CHECKPOINT_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""The file in which Ray Train notes the checkpoints of a run."""
SECONDS_TO_ABORT = 5.0


# --- the processes of a Ray that is the job's own


def end_helpers() -> None:
    """End what `ray.init` has started for a dashboard, for logs and for an autoscaler.

    Without it: three processes stay, in vain; see `local_ray`.
    """
    with Dispensable("Ray's helper processes cannot be ended", "they take some memory"):
        node = ray._private.worker._global_node
        for end in (node.kill_log_monitor, node.kill_monitor, node.kill_dashboard):
            end(check_alive=False)


def start_no_helpers() -> None:
    """Keep Ray Data, in this process, from starting the three actors that it has for clusters.

    They gather statistics for a dashboard, share the nodes out among jobs and ask an autoscaler for more, and note on
    which node the others are. Without it: each is a process more; see `local_ray`.
    """
    if _replaced:
        return
    without = "it takes some memory and a second of the start"
    with Dispensable("Ray Data's actor for statistics cannot be left out", without):
        from ray.data._internal.stats import _StatsManager

        for name in ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics"):
            _replace(_StatsManager, name, staticmethod(_nothing))
    with Dispensable("Ray Data's autoscaling cannot be left out", without):
        from ray.data._internal.execution import streaming_executor

        _replace(streaming_executor, "create_cluster_autoscaler", FixedCluster)
    with Dispensable("Ray Data's actor for locations cannot be left out", without):
        from ray.data._internal.execution.operators import actor_pool_map_operator

        _replace(actor_pool_map_operator, "get_or_create_actor_location_tracker", _no_tracker)
        _replace(actor_pool_map_operator, "get_actor_locations", _no_locations)


def start_helpers_again() -> None:
    """Take back `start_no_helpers`, for what else this process does with Ray."""
    while _replaced:
        owner, name, value = _replaced.pop()
        setattr(owner, name, value)


_replaced: list[tuple[Any, str, Any]] = []
"""Whose attribute, its name, and what it was."""


def _replace(owner: Any, name: str, value: Any) -> None:
    """Set what is there; where it is not, setting it would have no effect, and nobody would know.

    Raises:
        AttributeError: it is not there.
    """
    _replaced.append((owner, name, inspect.getattr_static(owner, name)))
    setattr(owner, name, value)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _no_tracker() -> SimpleNamespace:
    """In the place of the actor that is told where the others are; travels to them."""
    return SimpleNamespace(update_actor_location=SimpleNamespace(remote=_nothing))


def _no_locations(_: Any) -> dict[str, str]:
    """Of no actor: they stay where they were started."""
    return {}


class FixedCluster:
    """The cluster as it is, in the place of Ray Data's `ClusterAutoscaler`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._resources = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        """There is nobody to ask."""

    def on_executor_shutdown(self) -> None:
        """Nothing was asked for."""

    def get_total_resources(self) -> ExecutionResources:
        """All there are."""
        return self._resources


# --- an execution of Ray Data


def num_task_events(executor: Any) -> int:
    """How often a task of this execution has begun or ended; 0 where that is not known.

    Without it: the scheduling loop sleeps for as long as it may between two steps, which costs a run in which tasks
    are short some of its throughput.
    """
    with Dispensable("Ray Data's tasks cannot be counted", "its scheduling is slower"):
        return sum(
            operator.metrics.num_tasks_submitted + operator.metrics.num_tasks_finished
            for operator in executor._topology
        )
    return 0


def actors_of(executor: Any) -> Iterable[Any]:
    """The actors that this execution has at present.

    Without it: they hold their CPUs until Python collects the execution's garbage, for which the next one waits.
    """
    with Dispensable("Ray Data's actors cannot be told", "their CPUs are free some seconds later"):
        pools = [operator._actor_pool for operator in executor._topology if hasattr(operator, "_actor_pool")]
        return [actor for pool in pools for actor in pool._actor_to_logical_id]
    return []


# --- Ray Train


def trainer_class() -> Any:
    """`TorchTrainer` without what this project has no use for.

    Without it: two more actors, one that hands out datasets (each worker makes its own) and, where there is no
    dashboard, one that asks it in vain whether the controller lives, for which the end of a run waits ten seconds. And
    Ray's handler for Ctrl-C, which is never taken back, swallows it and ends the process with 0.
    """
    import ray.train.torch

    class Trainer(ray.train.torch.TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            self._controller = controller

        def abort(self) -> None:
            """End the controller, and with it the workers; after an interruption, as Ray's handler would have."""
            with suppress(AttributeError, ray.exceptions.RayError):
                ray.get(self._controller.abort.remote(), timeout=SECONDS_TO_ABORT)

        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()
            with Dispensable("Ray Train's actors cannot be left out", "the run takes ten seconds longer to end"):
                from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
                from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

                without = (DatasetsCallback,) if has_dashboard() else (DatasetsCallback, PlacementGroupCleanerCallback)
                return [callback for callback in callbacks if not isinstance(callback, without)]
            return callbacks

    with Dispensable("Ray Train's trainer has other parts", "it ends slowly, and not by Ctrl-C"):
        for name in ("_register_sigint_handler", "_create_default_callbacks"):
            getattr(ray.train.torch.TorchTrainer, name)
    return Trainer


def has_dashboard() -> bool:
    """Whether the cluster has one, which answers questions about its actors.

    Without it: as if it had, so that no actor is left out of a training.
    """
    with Dispensable("whether Ray has a dashboard is not known", "the run takes ten seconds longer to end"):
        return bool(ray._private.worker.get_dashboard_url())
    return True


def noted_checkpoints(uri: str) -> str | None:
    """What Ray Train notes of a run's checkpoints, with their names somewhere in it; None where it is not known.

    Without it: checkpoints that a killed driver left behind stay, and take room.

    Args:
        uri: of the folder of checkpoints.
    """
    with Dispensable("Ray Train's note of its checkpoints cannot be read", "none is deleted"):
        return files.read_bytes(files.join(uri, CHECKPOINT_SNAPSHOT)).decode()
    return None


# --- the autoscaler of a cluster


def autoscaler_state() -> Any:
    """What the cluster's autoscaler (its version 2) last said of itself: an `AutoscalingState`.

    None without one, with that of old, and where it does not answer. Without it: as without an autoscaler, so a job
    that needs more nodes than there are says so and ends, instead of beginning to wait for them.
    """
    with Dispensable("Ray's autoscaler cannot be asked", "a job does not wait for nodes to be added"):
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.autoscaler.v2.utils import is_autoscaler_v2
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        if not is_autoscaler_v2():
            return None
        reply = GetClusterStatusReply()
        reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
        return reply.autoscaling_state
    return None
