"""Ray clusters of several nodes on this machine, for jobs that join them by RAY_ADDRESS."""

import contextlib
import os

from ray.cluster_utils import Cluster


@contextlib.contextmanager
def cluster(*cpus):
    """Nodes with so many logical CPUs each, the first of them the head; yields the cluster."""
    before = os.environ.get("RAY_ADDRESS")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "include_dashboard": False})
    try:
        for number in cpus[1:]:
            nodes.add_node(num_cpus=number)
        yield nodes
    finally:
        nodes.shutdown()
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
