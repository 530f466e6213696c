"""Joins a Ray cluster or starts one on this machine; what nodes it has; whether they reach the data."""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Self

import ray

from deepfake_ray import interrupts
from deepfake_ray.cluster.local_ray import MARK, is_alone
from deepfake_ray.cluster.placement import DATA_LABEL, Node
from deepfake_ray.cluster.ray_internals import HEAD, RAY_VERSION, end_helpers, start_helpers_again
from deepfake_ray.console import say
from deepfake_ray.errors import JobError, UserError
from deepfake_ray.storage import files
from deepfake_ray.storage.errors import first_line

QUIET_LOGGERS = {"ray.data": logging.CRITICAL, "ray.train": logging.ERROR, "ray.tune": logging.ERROR}
"""Ray Data logs the loss of a node as an error, with its traceback; what ends a run is raised as well."""
_ANNOUNCEMENT = b"Set ray log level"
CONNECT_TIMEOUT_S = 10.0

_is_verbose = False


@contextlib.contextmanager
def ray_session(*, verbose: bool = False) -> Iterator[None]:
    """Ray for what is done inside: begun by the first `start_ray`, ended with the block, unless it was there before."""
    global _is_verbose
    _is_verbose = verbose
    require_pinned_ray()
    was_there = ray.is_initialized()
    try:
        yield
    finally:
        if not was_there:
            ray.shutdown()
            os.environ.pop(MARK, None)
            start_helpers_again()


def require_pinned_ray() -> None:
    """Refuse another Ray than the one that this project is made and tested for.

    Raises:
        UserError: it is another.
    """
    if ray.__version__ != RAY_VERSION:
        raise UserError(
            f"Ray must be {RAY_VERSION}, the version that this project is tested with: got {ray.__version__}; "
            f'pip install "ray[default,data,train]=={RAY_VERSION}", on all nodes of a cluster.'
        )


def start_ray() -> None:
    """Join the cluster at RAY_ADDRESS (set for submitted jobs), else start one here; nothing where Ray is up already.

    Whatever asks for the cluster's nodes calls it, so that a job lists and checks what it can before.

    Raises:
        UserError: it is another Ray than the pinned one; the cluster does not let this user in.
        JobError: Ray does not start, twice.
    """
    require_pinned_ray()
    if ray.is_initialized():
        return
    for name, quiet in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(logging.INFO if _is_verbose else quiet)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _require_an_open_port(address)
    os.environ.pop(MARK, None)  # of the process that started this one
    if not address:
        _set_environment_of_own()
    say(f"joining the Ray cluster at {address} ..." if address else "starting Ray on this machine ...")
    started = time.monotonic()
    try:
        with _unannounced():
            _init(address, first=True)
    finally:
        interrupts.own()
    if not address and not _is_verbose:
        end_helpers()
    say(f"Ray is up after {time.monotonic() - started:.0f} s")


@contextlib.contextmanager
def _unannounced() -> Iterator[None]:
    """Keeps back the line by which Ray's C++ part says on standard error that it was given a log level."""
    sys.stderr.flush()
    reading, writing = os.pipe()
    stderr = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)

    def pass_on() -> None:
        with open(reading, "rb", buffering=0) as lines:
            for line in lines:
                if _ANNOUNCEMENT not in line:
                    os.write(stderr, line)

    thread = threading.Thread(target=pass_on, name="stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        thread.join(1.0)
        if not thread.is_alive():  # else somebody writes there still
            os.close(stderr)


def _set_environment_of_own() -> None:
    os.environ[MARK] = "1"
    if not _is_verbose:
        # Without a dashboard the train controller cannot be looked up in it, which it would say each second.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray's own processes, and the driver, would else take the CPU from a worker in the middle of its step.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Processes beyond one a CPU are ended after a second without a task, and training has a task each second or
    # two: starting them over and over took a third of the CPU time.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    # Nobody takes this machine away while it trains; the actor that looks out for it costs a process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def _init(address: str | None, *, first: bool) -> None:
    """`ray.init`, once more where Ray was too slow or did not come up, as on a machine that is busy with other work."""
    try:
        ray.init(
            # "local" rather than None: a cluster that died here earlier leaves a file behind that None would follow.
            address=None if address else "local",
            logging_level=logging.INFO if _is_verbose else logging.ERROR,
            log_to_driver=_is_verbose,
            **({} if address else {"include_dashboard": False}),
        )
    except Exception as error:  # the time-out of a node's start is an Exception and nothing more
        if address and isinstance(error, (ConnectionError, ValueError, RuntimeError)):
            asks = "AuthToken" in str(error.__cause__)
            raise _refused("it asks for a token" if asks else first_line(error)) from error
        ray.shutdown()
        reason = first_line(error)
        if not first:
            raise JobError(
                f"Ray did not start, twice: {reason}; see /tmp/ray/session_latest/logs, whether the machine is busy, "
                "and whether /tmp and /dev/shm have room."
            ) from error
        say(f"Ray did not start ({reason}): once more")
        _init(address, first=False)


def _require_an_open_port(address: str) -> None:
    """Where nothing answers, Ray would go on trying for a quarter of an hour.

    Raises:
        UserError: nothing answers at `host:port`; other forms of an address are left to Ray.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S):
            pass
    except OSError as error:
        raise _refused(str(error)) from error


def _refused(reason: str) -> UserError:
    return UserError(
        f"RAY_ADDRESS must be the host:port of a running cluster that lets this user in: got "
        f"{os.environ['RAY_ADDRESS']} ({reason}); unset it to start Ray here, and where the cluster asks for a token, "
        "set RAY_AUTH_MODE=token with the token in RAY_AUTH_TOKEN or ~/.ray/auth_token. `http://...:8265` is for "
        "`ray job submit` alone."
    )


def cluster_nodes() -> list[Node]:
    """The alive nodes that offer CPUs; starts Ray where it is not up yet."""
    start_ray()
    return [
        Node(
            node["Resources"]["CPU"],
            node["Resources"].get("GPU", 0.0),
            has_data_label=DATA_LABEL.items() <= node["Labels"].items(),
        )
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    ]


def avoid_head() -> dict[str, str]:
    """A label selector for tasks that ask for no CPU: not on a head that offers none."""
    for node in ray.nodes():
        if node["Alive"] and HEAD in node["Resources"] and not node["Resources"].get("CPU"):
            return {"ray.io/node-id": f"!{node['NodeID']}"}
    return {}


class Patience:
    """A context manager that says, every half minute until work has begun, that it has not, and what is free."""

    def __init__(self, stage: str, *, interval_s: float = 30.0):
        self._stage, self._interval_s = stage, interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="patience", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.begun()
        self._thread.join()

    def begun(self) -> None:
        """Say no more."""
        self._over.set()

    def _wait(self) -> None:
        while not self._over.wait(self._interval_s):
            free, total = ray.available_resources(), ray.cluster_resources()
            resources = ", ".join(
                f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s are free" for kind in ("CPU", "GPU") if kind in total
            )
            say(f"{self._stage}: no result yet ({resources}); what other jobs hold is waited for")


def cause_of(error: BaseException) -> str:
    """What went wrong in a worker, below what Ray says of it."""
    while error.__cause__ is not None and str(error.__cause__):  # Ray Data's SystemException says nothing
        error = error.__cause__
    if isinstance(error, ray.exceptions.ActorDiedError) and error.actor_init_failed:
        # Of what an actor raised while it was made, Ray keeps the traceback's text alone.
        after_last_frame = str(error).rpartition('\n  File "')[2].splitlines()[1:]
        return next((line for line in after_last_frame if line[:1].strip()), first_line(error))
    return f"{type(error).__name__}: {first_line(error)}"


def check_places(inputs: Sequence[str], output: str, *, shared_storage: bool) -> None:
    """Make sure, from a worker, that the input can be read and the output written, before long work begins.

    Raises:
        UserError: they cannot; or a path is local on a cluster of several nodes.
    """
    places = [*inputs, output]
    if len(cluster_nodes()) > 1 and not shared_storage:
        for place in places:
            if files.is_local(place):
                raise UserError(
                    f"On a cluster of several nodes each path must be reachable from all: {place} is local; use a "
                    "URI such as s3://..., or add --shared-storage if all nodes mount it."
                )
    if is_alone():
        problem = _problem(inputs, output)  # the workers are on this machine, and reach what this process reaches
    else:
        probe = ray.remote(num_cpus=0, label_selector=avoid_head())(_problem)
        problem = ray.get(probe.remote(list(inputs), output))
    if problem:
        raise UserError(problem)


def _problem(inputs: Sequence[str], output: str) -> str:
    """What is wrong, or nothing; runs where workers do."""
    try:
        for place in inputs:
            if not files.exists(place):
                return f"The workers must reach the input: {place} does not exist there; check path and credentials."
        mark = files.join(output, f".probe-{os.getpid()}")
        files.write_bytes(mark, b"")
        files.delete(mark)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"The workers must be able to write the output: {output}: {error}; check path and credentials."
    return ""
