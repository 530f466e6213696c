"""Jobs as processes of their own, and the processes that Ray starts for them."""

import contextlib
import os
import subprocess
import sys
import time

from conftest import ROOT


def _command(job, flags, address):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    if address:
        environment["RAY_ADDRESS"] = address
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)], environment


def run_job(job, *flags, address=None):
    """Run a job to its end; on a cluster, if it has an address."""
    command, environment = _command(job, flags, address)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)


def start_job(job, *flags, address=None):
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


def processes_named(title, below=None):
    """Ids of the processes whose title begins so; only those that descend from a process, if one is given."""
    parents, found = {}, []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read().startswith(title.encode()):
                    found.append(int(pid))
            with open(f"/proc/{pid}/stat") as file:
                parents[int(pid)] = int(file.read().rsplit(")", 1)[1].split()[1])

    def descends(pid):
        while pid in parents and pid != below:
            pid = parents[pid]
        return pid == below

    return [pid for pid in found if below is None or descends(pid)]
