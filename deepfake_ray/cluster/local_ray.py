"""A Ray that a job has for itself, on one machine: without what looks after a cluster with others in it.

Ray 2.60 has processes that gather logs and statistics for a dashboard, share the nodes out among jobs, ask an
autoscaler for more, and note which node an actor is on. Here there is nothing for them to do. Each takes about a
hundredth of a core, and all together some 500 MiB and four seconds of the start-up
(benchmarks/results/peers_2cpu_bf16_20261123.md).
"""

import os

MARK = "DEEPFAKE_RAY_ALONE"
"""In the environment of all processes of such a Ray."""


def is_alone() -> bool:
    """Whether the job of this process, or the one that it works for, has Ray for itself."""
    return MARK in os.environ
