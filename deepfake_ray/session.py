"""Joins a Ray cluster or starts one on this machine; what nodes it has; whether they reach the data."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

import ray

from deepfake_ray import storage
from deepfake_ray.errors import UserError
from deepfake_ray.placement import Node

NOISY_LOGGERS = ("ray.data", "ray.train", "ray.tune")


@contextlib.contextmanager
def ray_session(*, verbose: bool = False) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS (set for submitted jobs), else start one here and stop it afterwards."""
    if ray.is_initialized():
        yield
        return
    level = logging.INFO if verbose else logging.ERROR
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)
    # "local" rather than None: a cluster that died here earlier leaves a file behind that None would follow.
    address = None if os.environ.get("RAY_ADDRESS") else "local"
    if address and not verbose:
        # Without a dashboard the train controller cannot be looked up in it, which it would say each second.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address:
        # Ray's own processes, and the driver, would else take the CPU from a worker in the middle of its step.
        os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address=address,
        logging_level=level,
        log_to_driver=verbose,
        **({"include_dashboard": False} if address else {}),
    )
    try:
        yield
    finally:
        ray.shutdown()


def cluster_nodes() -> list[Node]:
    """The alive nodes that offer CPUs or GPUs."""
    nodes = [
        Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"] and (resources := node["Resources"])
    ]
    return [node for node in nodes if node.num_cpus > 0]


def cause_of(error: BaseException) -> str:
    """What went wrong in a worker, below what Ray says of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {storage.first_line(error)}"


def check_places(inputs: Sequence[str], output: str, *, shared_storage: bool) -> None:
    """Make sure, from a worker, that the input can be read and the output written, before long work begins.

    Raises:
        UserError: they cannot; or a path is local on a cluster of several nodes.
    """
    places = [*inputs, output]
    if len(cluster_nodes()) > 1 and not shared_storage:
        for place in places:
            if storage.is_local(place):
                raise UserError(
                    f"On a cluster of several nodes each path must be reachable from all: {place} is local; use a "
                    "URI such as s3://..., or add --shared-storage if all nodes mount it."
                )
    problem = ray.get(_probe.options(num_cpus=0).remote(list(inputs), output))
    if problem:
        raise UserError(problem)


@ray.remote
def _probe(inputs: list[str], output: str) -> str:
    """Runs on a worker; returns what is wrong, or nothing."""
    try:
        for place in inputs:
            if not storage.exists(place):
                return f"The workers must reach the input: {place} does not exist there; check path and credentials."
        mark = storage.join(output, f".probe-{os.getpid()}")
        storage.write_bytes(mark, b"")
        storage.delete(mark)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"The workers must be able to write the output: {output}: {error}; check path and credentials."
    return ""
