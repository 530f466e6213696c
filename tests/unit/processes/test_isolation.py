import os
import signal
import time

import pytest
from checkout import ROOT

from deepfake_ray.processes import isolation
from deepfake_ray.processes.isolation import Isolated, WorkerDiedError


@pytest.fixture
def fragile(tmp_path):
    worker = Isolated("workers:Fragile", str(tmp_path), timeout_s=1)
    yield worker
    worker.close()


def test_work_is_done_elsewhere(fragile):
    assert fragile(["a", "b"]) == ["A", "B"]
    assert fragile(["c"]) == ["C"]


def test_a_crash_costs_its_item_only(fragile):
    assert fragile(["a", "crash", "b", "crash", "c"]) == [
        "A", "crashed the decoder's process (SIGSEGV), twice", "B",
        "crashed the decoder's process (SIGSEGV), twice", "C",
    ]  # fmt: skip
    assert fragile(["d"]) == ["D"]


def test_a_hang_costs_its_item_only(fragile):
    assert fragile(["a", "hang", "b"]) == ["A", "took longer than 1 s", "B"]


def test_one_death_proves_nothing(fragile):
    """A process that is killed from outside was at some item: trying that one again clears it."""
    assert fragile(["a", "once", "b"]) == ["A", "ONCE", "B"]


def test_errors_come_through_and_the_worker_lives(fragile):
    with pytest.raises(KeyError, match="an ordinary one") as caught:
        fragile(["error"])
    assert "workers.py" in caught.value.__notes__[0]
    assert fragile(["a"]) == ["A"]
    with pytest.raises(ValueError, match="no such folder"):
        Isolated("workers:Fragile", "refuse")


def test_deaths_without_a_suspect_end(fragile):
    with pytest.raises(WorkerDiedError, match="died 3 times, the last time of exit status 3"):
        fragile(["die"])


def test_an_interrupted_call_does_not_answer_the_next_one(tmp_path):
    """Ray's cancelling of a task raises KeyboardInterrupt in it, and the next task may ask the same process."""
    worker = Isolated("workers:Fragile", str(tmp_path))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            worker(["slow"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert worker(["a"]) == ["A"]
    worker.close()


def test_after_an_end_without_a_suspect_the_next_call_begins_anew(fragile):
    with pytest.raises(WorkerDiedError):
        fragile(["die"])
    assert fragile(["a"]) == ["A"]


def test_two_deaths_while_starting_are_outlived_and_three_are_not(tmp_path):
    (tmp_path / "deaths while starting").write_text("2")
    worker = Isolated("workers:Fragile", str(tmp_path))
    assert worker(["a"]) == ["A"]
    worker.close()
    (tmp_path / "deaths while starting").write_text("3")
    with pytest.raises(WorkerDiedError, match="died 3 times while starting, the last time of SIGKILL"):
        Isolated("workers:Fragile", str(tmp_path))


def test_a_start_that_hangs_ends(tmp_path, monkeypatch):
    """OpenBLAS tries for ever where address space is short (`ulimit -v 400000`)."""
    monkeypatch.setattr(isolation, "START_TIMEOUT_S", 1.0)
    with pytest.raises(WorkerDiedError, match="did not start within 1 s"):
        Isolated("workers:Fragile", "hang")


def test_memory_is_limited_for_items_and_not_for_what_is_no_decoders(tmp_path):
    worker = Isolated("workers:Fragile", str(tmp_path), decoder_bytes=300 << 20)
    assert worker(["a", "greedy", "free", "greedy", "b"]) == [
        "A", "out of memory", str(600 << 20), "out of memory", "B",
    ]  # fmt: skip
    worker.close()
    unlimited = Isolated("workers:Fragile", str(tmp_path))
    assert unlimited(["greedy"]) == [f"got {600 << 20} bytes"]
    unlimited.close()


def test_the_process_ends_with_its_parent(tmp_path):
    """A killed parent's process must not work on beside that of the resumed run."""
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "from deepfake_ray.processes.isolation import Isolated\n"
        f"w = Isolated('workers:Fragile', {str(tmp_path)!r})\n"
        "print(w._process.pid, flush=True)\n"
        "w(['hang'])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "support")}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    child = int(parent.stdout.readline())
    assert os.path.exists(f"/proc/{child}")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
