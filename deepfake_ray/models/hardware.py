"""What the processors of this machine are able to do. Knows neither Ray nor torch."""

import subprocess
import sys
from collections.abc import Callable

from deepfake_ray.schema import AUTO, BF16, FP32, INT8

BF16_FLAGS = frozenset({"avx512_bf16", "amx_tile"})
"""One of them, and the CPU multiplies bf16 natively; one that emulates it is several times slower than in fp32."""
MIN_CAPABILITY = 8.0
"""Of GPUs that multiply bf16 natively, from Ampere on."""
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})
"""One of them, and the CPU adds products of 8-bit integers without overflow."""
TIMEOUT_S = 60.0
_ASK_TORCH = """
import torch
for index in range(torch.cuda.device_count()):
    print(*torch.cuda.get_device_capability(index), sep=".")
"""


def chosen_precision(asked: str, *, quantized: bool, is_native: Callable[[], bool]) -> str:
    """What to compute in: bf16, fp32 or int8.

    Args:
        asked: auto, bf16 or fp32.
        quantized: whether the model computes in integers.
        is_native: whether bf16 is, wherever it computes; called for `auto` only.
    """
    if quantized:
        return INT8
    if asked != AUTO:
        return asked
    return BF16 if is_native() else FP32


def cpu_computes_bf16() -> bool:
    """Whether this machine's CPUs multiply bf16 natively."""
    return bool(BF16_FLAGS & cpu_flags())


def cpu_flags() -> frozenset[str]:
    """What the CPUs of this machine are able to do, in Linux' names; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.lower().startswith(("flags", "features"))]
    except OSError:
        return frozenset()
    each = [frozenset(line.partition(":")[2].split()) for line in lines]
    return frozenset.intersection(*each) if each else frozenset()


def gpu_computes_bf16() -> bool:
    """Whether all GPUs of this machine multiply bf16 natively."""
    found = _capabilities(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    if not found:  # containers may lack it
        # Of its own, with all GPUs: a task that asked for none sees none.
        found = _capabilities(["env", "-u", "CUDA_VISIBLE_DEVICES", sys.executable, "-c", _ASK_TORCH])
    return bool(found) and min(found) >= MIN_CAPABILITY


def _capabilities(command: list[str]) -> list[float]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        return [float(line) for line in done.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def has_vnni() -> bool:
    """Whether this machine's CPUs add products of 8-bit integers without overflow."""
    return bool(VNNI_FLAGS & cpu_flags())
