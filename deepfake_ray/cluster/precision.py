"""In which precision a run computes: decided once, on the driver, before anything is computed.

Logits in bf16 differ from those in fp32 by some hundredths of p_fake, so one run computes in one precision, which its
run.json and the `model_id` of its rows name. Imports no torch: the driver of a scoring run does without.
"""

from collections.abc import Callable

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deepfake_ray.cluster.local_ray import is_alone
from deepfake_ray.models.hardware import chosen_precision, cpu_computes_bf16, gpu_computes_bf16

PROBE_TIMEOUT_S = 60.0


def resolve(asked: str, *, use_gpu: bool, quantized: bool = False) -> str:
    """What a run computes in: bf16, fp32 or int8.

    `auto` is bf16 where every node that is there to compute does so natively, else fp32. Nodes that come later compute
    in the same, natively or not.

    Args:
        asked: auto, bf16 or fp32.
        use_gpu: whether the run computes on GPUs.
        quantized: whether its model computes in integers.
    """
    native = gpu_computes_bf16 if use_gpu else cpu_computes_bf16
    return chosen_precision(asked, quantized=quantized, is_native=lambda: all(_answers(native, use_gpu)))


def _answers(native: Callable[[], bool], use_gpu: bool) -> list[bool]:
    """Of each node that would compute. One that does not answer, or none at all, is no reason to count on bf16."""
    if is_alone():
        return [native()]
    kind = "GPU" if use_gpu else "CPU"
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
    probe = ray.remote(num_cpus=0, max_retries=0)(native)
    asked = [
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes
    ]
    try:
        return ray.get(asked, timeout=PROBE_TIMEOUT_S) or [False]
    except ray.exceptions.RayError:
        return [False]
