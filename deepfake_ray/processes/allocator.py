"""The C library's memory allocator, set for tensors that come and go."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Make this process keep what it frees, for the next tensor of that size.

    By default glibc gives large blocks back to the system at once, so each forward pass had its activations paged in
    anew: two fifths of the time (benchmarks/results/scoring_2cpu_20261122.md). The process then holds what it held at
    its peak. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def give_back_freed_memory() -> None:
    """Give what this process has freed back to the system: after an image whose like may not come again."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
