"""Ray clusters on this machine, for jobs that join them by RAY_ADDRESS."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
from processes import descendants
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster


@contextlib.contextmanager
def cluster(*nodes, dashboard=False):
    """Nodes with so many logical CPUs each, or with the arguments of `Cluster.add_node`, the first of them the head;
    yields the cluster.
    """
    before = os.environ.get("RAY_ADDRESS")
    head, *others = [node if isinstance(node, dict) else {"num_cpus": node} for node in nodes]
    found = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": dashboard})
    try:
        for node in others:
            found.add_node(**node)
        yield found
    finally:
        found.shutdown()
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def started_head(*flags, port=None, environment=()):
    """`ray start --head` as its users run it, in the foreground."""
    program = str(Path(sys.executable).with_name("ray"))
    # The agent's port, too: other Rays of the tests have agents on this machine.
    ports = (f"--port={port or free_port()}", f"--dashboard-agent-listen-port={free_port()}")
    command = [program, "start", "--head", "--block", *ports, *flags]
    with tempfile.TemporaryFile("w+") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **dict(environment)})
        try:
            deadline = time.monotonic() + 60
            while True:
                log.seek(0)
                text = log.read()
                if "Ray runtime started" in text:
                    break
                assert head.poll() is None, text
                assert time.monotonic() < deadline, text
                time.sleep(0.2)
            yield
        finally:
            everything = [head.pid, *descendants(head.pid)]
            for pid in everything:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            head.wait()


@contextlib.contextmanager
def autoscaling_cluster(**node_types):
    """A head without CPUs, and an autoscaler that starts nodes of these types, each its resources and how many at most;
    yields the address.
    """
    types = {
        name: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": number}
        for name, (resources, number) in node_types.items()
    }
    types["ray.head.default"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    config = {
        "cluster_name": "local", "max_workers": 8, "idle_timeout_minutes": 5, "auth": {}, "file_mounts": {},
        "provider": {"type": "external", "module": provider, "launch_multiple": True,
                     "head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": address},
        "head_node_type": "ray.head.default", "available_node_types": types, "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [], "initialization_commands": [], "cluster_synced_files": [],
    }  # fmt: skip
    environment = {
        "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        flags = ("--num-cpus=0", f"--autoscaling-config={file.name}", "--include-dashboard=false")
        with started_head(*flags, port=address.split(":")[1], environment=environment):
            yield address
