"""How much memory this process may take while it decodes: a decoder that wants more fails, and not the machine.

Its address space is limited (RLIMIT_AS), to what it has and an allowance. The model's forward pass needs memory of
another order and is no image's fault, so the limit is lifted for it; taking hold of it anew costs two microseconds.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

_allowance: int | None = None


def limit(num_bytes: int) -> None:
    """From now on, this process may take so many bytes more than it has."""
    global _allowance
    _allowance = num_bytes
    renew()


def renew() -> None:
    """Count the allowance from what the process has now, if there is one."""
    if _allowance is None:
        return
    with open("/proc/self/statm", "rb", buffering=0) as file:
        size = int(file.read(64).split(b" ", 1)[0]) * os.sysconf("SC_PAGESIZE")
    _set(size + _allowance)


def _set(soft: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def lifted() -> Iterator[None]:
    """For work that is no decoder's."""
    if _allowance is None:
        yield
        return
    _set(resource.RLIM_INFINITY)
    try:
        yield
    finally:
        renew()
