"""Jobs as processes of their own, and the processes that Ray starts for them."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import ray
from checkout import ROOT


def _command(job, flags, address):
    environment = {**os.environ, "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}  # there is no dashboard that it could ask
    environment["RAY_ADDRESS"] = address or ray.get_runtime_context().gcs_address
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)], environment


def run_job(job, *flags, address=None):
    """Run a job to its end, on the cluster of that address; else on that of the tests."""
    command, environment = _command(job, flags, address)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)


def start_job(job, *flags, address=None):
    """As `run_job`, without waiting."""
    command, environment = _command(job, flags, address)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_until(process, condition, seconds=150):
    """While the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_when(process, condition):
    """kill -9 once the condition holds."""
    wait_until(process, condition)
    process.kill()
    process.wait()


def _parents():
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            parents[int(pid)] = int(file.read().rsplit(")", 1)[1].split()[1])
    return parents


def descendants(ancestor):
    """Ids of the processes that descend from a process."""
    parents = _parents()

    def descends(pid):
        while pid in parents and pid != ancestor:
            pid = parents[pid]
        return pid == ancestor

    return [pid for pid in parents if pid != ancestor and descends(pid)]


def _command_lines(below):
    found = {}
    for pid in descendants(below):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            found[pid] = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def command_lines(below):
    """Of the processes that descend from a process; Ray's workers have a title instead."""
    return list(_command_lines(below).values())


def processes_named(title, below=None):
    """Ids of the processes below another (default: this one) whose title begins so."""
    below = os.getpid() if below is None else below
    return [pid for pid, line in _command_lines(below).items() if line.startswith(title)]


def scorer_processes():
    """(pid of the Ray worker, pid of the process it scores in), of the Rays that these tests started: others may run on
    this machine.
    """
    parents = _parents()
    return [(parents[pid], pid) for pid, line in _command_lines(os.getpid()).items() if "_serve(" in line]


@contextlib.contextmanager
def halted(pids):
    """These processes do nothing meanwhile: what is to happen in the middle of a run then does, however fast it is."""
    pids = list(pids)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
