"""One run at a time writes an output."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from checkout import ROOT

from deepfake_ray.errors import JobError, UserError
from deepfake_ray.storage import files, output_lock, outputs
from deepfake_ray.storage.output_lock import Holder, hold_output


@pytest.fixture(autouse=True)
def _short_times(monkeypatch):
    monkeypatch.setattr(output_lock, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(output_lock, "STALE_S", 0.3)
    monkeypatch.setattr(output_lock, "DYING_S", 0.3)


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "o")


def lock_of(output):
    return json.loads(files.read_bytes(files.join(output, outputs.LOCK)))


def elsewhere(output, **options):
    """A lock as one on another machine has written it."""
    content = {**json.loads(Holder.this_process().content(0)), "host": "other", "machine": "another boot", **options}
    files.write_json(files.join(output, outputs.LOCK), content)


def test_it_says_who_and_nothing_of_it_stays(output):
    with hold_output(output) as lock:
        found = lock_of(output)
        assert (found["pid"], found["host"]) == (os.getpid(), os.uname().nodename)
        outputs.require_new_output(output, resumable=True)
        lock.require()
        files.write_bytes(files.join(output, "x"), b"")
    assert os.listdir(output) == ["x"]


def test_a_folder_that_nothing_was_written_to_is_not_left(output):
    with pytest.raises(UserError, match="no such image"), hold_output(output):
        raise UserError("no such image")
    assert not os.path.exists(output)
    os.mkdir(output)
    with hold_output(output):
        pass
    assert os.listdir(output) == []


def test_a_second_run_is_refused_by_name(output):
    with (
        hold_output(output),
        pytest.raises(UserError, match=rf"One run at a time .*/o is being written by process {os.getpid()} on .*begun"),
        hold_output(output),
    ):
        pass


def test_of_many_at_once_one_has_it(output):
    """Also where each finds the lock of a run that was killed."""
    for left in (None, Holder.this_process().content(0).replace(b'"pid": ', b'"pid": 99999')):
        has, refused, all_ready = [], [], threading.Barrier(8)

        def one(has=has, refused=refused, all_ready=all_ready):
            all_ready.wait()
            try:
                with hold_output(output):
                    has.append(1)
                    while len(has) + len(refused) < 8:
                        time.sleep(0.001)
            except UserError as error:
                refused.append(error)

        if left is not None:
            files.write_bytes(files.join(output, outputs.LOCK), left)
        threads = [threading.Thread(target=one, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert (len(has), len(refused)) == (1, 7)


def child(output):
    """A process that has the lock."""
    code = (
        "import sys, time; from deepfake_ray.storage.output_lock import hold_output\n"
        "with hold_output(sys.argv[1]): print(flush=True); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, output], stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    return process


def test_the_lock_of_a_killed_run_is_taken_over_at_once(output, capsys, monkeypatch):
    monkeypatch.setattr(output_lock, "STALE_S", 1000)
    process = child(output)
    try:
        with pytest.raises(UserError, match=f"process {process.pid} on "), hold_output(output):
            pass
        process.send_signal(signal.SIGSTOP)  # does nothing, and lives
        time.sleep(0.5)
        with pytest.raises(UserError, match=f"process {process.pid} on "), hold_output(output):
            pass
    finally:
        process.kill()
    monkeypatch.setattr(output_lock, "DYING_S", 20)
    with hold_output(output):  # it is a zombie: nobody has waited for it
        assert lock_of(output)["pid"] == os.getpid()
    assert f"process {process.pid} on" in capsys.readouterr().err
    process.wait()
    process.stdout.close()


def test_another_process_with_its_number_does_not_count(output):
    files.write_bytes(
        files.join(output, outputs.LOCK), Holder.this_process().content(0).replace(b'started": "', b'started": "9')
    )
    with hold_output(output):
        pass


def test_a_run_elsewhere_is_waited_for(output, capsys):
    elsewhere(output)
    began = time.monotonic()
    with hold_output(output):
        assert time.monotonic() - began >= 0.3
    said = capsys.readouterr().err
    assert "was being written by process" in said
    assert "on other, begun" in said
    assert "is gone: this run goes on" in said


def test_a_run_elsewhere_that_lives_is_left_alone(output):
    elsewhere(output)
    beat = threading.Timer(0.1, elsewhere, [output], {"heartbeat": 1})
    beat.start()
    with pytest.raises(UserError, match="on other, begun"), hold_output(output):
        pass
    beat.join()


def test_a_lock_that_says_nothing_is_waited_for(output):
    files.write_bytes(files.join(output, outputs.LOCK), b"")
    with hold_output(output):
        assert lock_of(output)["pid"] == os.getpid()


def test_who_was_held_up_for_too_long_notices(output):
    with hold_output(output) as lock:
        elsewhere(output)
        time.sleep(0.2)  # its heartbeat must not take it back
        with pytest.raises(JobError, match=r"is no longer this run's: process \d+ on other"):
            lock.require()
    assert lock_of(output)["host"] == "other"
    os.remove(files.join(output, outputs.LOCK))
    with hold_output(output) as lock:
        os.remove(files.join(output, outputs.LOCK))
        with pytest.raises(JobError, match="nobody has its _LOCK"):
            lock.require()


def test_the_heartbeat_changes_the_lock(output):
    with hold_output(output) as lock:
        time.sleep(0.3)
        assert lock_of(output)["heartbeat"] > 0
        lock.require()
    assert not os.path.exists(output)


def test_where_links_are_not_to_be_had(output, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with hold_output(output), pytest.raises(UserError, match="One run at a time"), hold_output(output):
        pass
    assert not os.path.exists(output)


def test_a_file_is_no_output(tmp_path):
    (tmp_path / "o").write_text("")
    with pytest.raises(UserError, match="output must be a directory: .*/o is a file"), hold_output(str(tmp_path / "o")):
        pass


def test_a_storage_that_fails_is_one_line(output):
    with (
        pytest.raises(JobError, match=r"No space left on device.*; mend the cause and add --resume"),
        hold_output(output),
    ):
        raise OSError(28, "No space left on device", "/x")
    with contextlib.suppress(FileNotFoundError):
        assert os.listdir(output) == []
