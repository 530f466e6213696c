"""A Ray that a job has for itself, on one machine: without what looks after a cluster with others in it.

Ray 2.60 has processes that gather logs and statistics for a dashboard, share the nodes out among jobs, ask an
autoscaler for more, and note which node an actor is on. Here there is nothing for them to do. Each takes about a
hundredth of a core, and all together some 500 MiB and four seconds of the start-up
(benchmarks/results/peers_2cpu_bf16_20261123.md).
"""

import os
from types import SimpleNamespace
from typing import Any

import ray
from ray.data import ExecutionResources
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.operators import actor_pool_map_operator
from ray.data._internal.stats import _StatsManager

MARK = "DEEPFAKE_RAY_ALONE"
"""In the environment of all processes of such a Ray."""


def is_alone() -> bool:
    """Whether the job of this process, or the one that it works for, has Ray for itself."""
    return MARK in os.environ


def end_helpers() -> None:
    """End those that `ray.init` has started."""
    node = ray._private.worker._global_node
    for end in (node.kill_log_monitor, node.kill_monitor, node.kill_dashboard):
        end(check_alive=False)


def start_no_helpers() -> None:
    """Have Ray Data start none from this process."""
    _StatsManager.register_dataset_to_stats_actor = staticmethod(_nothing)
    _StatsManager.update_execution_metrics = staticmethod(_nothing)
    _StatsManager.update_iteration_metrics = staticmethod(_nothing)
    streaming_executor.create_cluster_autoscaler = FixedCluster
    actor_pool_map_operator.get_or_create_actor_location_tracker = _no_tracker
    actor_pool_map_operator.get_actor_locations = lambda _: {}  # they stay where they were started


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _no_tracker() -> SimpleNamespace:
    """In the place of the actor that is told where the others are; travels to them."""
    return SimpleNamespace(update_actor_location=SimpleNamespace(remote=_nothing))


class FixedCluster(ClusterAutoscaler):
    """The cluster as it is."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._resources = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        """There is nobody to ask."""

    def on_executor_shutdown(self) -> None:
        """Nothing was asked for."""

    def get_total_resources(self) -> ExecutionResources:
        """All there are."""
        return self._resources
