"""Nodes that are not there yet: what a job needs, asked of the cluster's autoscaler, and waited for."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ray.autoscaler.sdk import request_resources

from deepfake_ray.cluster.placement import ClusterTooSmallError, Node
from deepfake_ray.cluster.ray_internals import autoscaler_state
from deepfake_ray.cluster.session import cluster_nodes
from deepfake_ray.console import say

Plan = TypeVar("Plan")

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 30.0
SECONDS_TO_ANSWER = 30.0
"""An autoscaler that has neither refused by then nor begun to start a node is not going to."""


def plan_with_autoscaler(plan: Callable[[Sequence[Node]], Plan]) -> Plan:
    """`plan(nodes)`, as soon as there are nodes enough.

    Where the cluster has an autoscaler, it is asked for what is missing, and waited for, for as long as it takes: a
    spot GPU may be hours away.

    Raises:
        ClusterTooSmallError: the nodes do not suffice, and no others will come.
    """
    try:
        return plan(cluster_nodes())
    except ClusterTooSmallError as error:
        if autoscaler_state() is None:  # there is nobody to tell what will come
            raise
        with _asked_for(error.bundles):
            return _wait(plan, error)


def _wait(plan: Callable[[Sequence[Node]], Plan], error: ClusterTooSmallError) -> Plan:
    started = last_line = time.monotonic()
    say(f"waiting for the autoscaler: {error}")
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            return plan(cluster_nodes())
        except ClusterTooSmallError as latest:
            if latest.bundles != error.bundles:
                request_resources(bundles=[dict(bundle) for bundle in latest.bundles])
            error = latest
        now = time.monotonic()
        waited = f"{now - started:.0f} s"
        state = autoscaler_state()
        if state is None:  # the head is busy, or is being restarted: the nodes may come all the same
            doing = "it does not say what it is doing"
        elif _is_refused(state, error.bundles):
            raise ClusterTooSmallError(f"{error} Its autoscaler cannot add such nodes.", error.bundles)
        else:
            starting = len(state.pending_instances) + sum(one.count for one in state.pending_instance_requests)
            failed = [one.reason for one in state.failed_instance_requests]
            if now - started >= SECONDS_TO_ANSWER and not starting and not failed:
                message = f"{error} Its autoscaler was asked {waited} ago and is starting none; see `ray status`."
                raise ClusterTooSmallError(message, error.bundles)
            doing = f"nodes that it is starting: {starting}" + (f"; it could not: {failed[-1]}" if failed else "")
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            say(f"waiting for the autoscaler since {waited}, {doing}. {error}")


@contextmanager
def _asked_for(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        yield
    finally:
        request_resources(bundles=[])  # or these nodes would stay for ever


def _is_refused(state: Any, bundles: Sequence[Mapping[str, float]]) -> bool:
    """Whether the autoscaler says that it cannot have these; what it says may still be about an earlier request."""
    return any(
        request.count == len(bundles) and dict(request.request.resources_bundle) == dict(bundles[0])
        for constraint in state.infeasible_cluster_resource_constraints
        for request in constraint.resource_requests
    )
