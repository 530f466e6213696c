"""Ctrl-C and SIGTERM, at any stage, by any handler: 130 or 143, one line that says how to go on, no traceback.

Most jobs here are stand-ins that behave as Ray does at that stage, so that a case takes two seconds; the last test
interrupts a real training in a terminal, where ^C goes to Ray's processes as well, and resumes it.
"""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from checkout import ROOT
from processes import command_lines, descendants

BEFORE = signal.getsignal(signal.SIGINT)
"""As the tests were started: ignored, where that was in the background."""

STAND_INS = '''
import os, signal, sys, threading, time

def say(word):
    print(word, file=sys.stderr, flush=True)

def listing(config):
    say("ready")
    time.sleep(60)

def writing(config):
    os.makedirs(config.output)
    open(config.output + "/config.json", "w").close()
    listing(config)

def done_but_open(config):
    os.makedirs(config.output)
    open(config.output + "/_SUCCESS", "w").close()
    listing(config)

def ray_train(config):
    """`DataParallelTrainer.fit` keeps its handler, which swallows a second Ctrl-C and answers the third with 0."""
    signal.signal(signal.SIGINT, lambda *_: None)
    listing(config)

def ray_init(config):
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(1))
    listing(config)

def failing_on_the_way_out(config):
    """A worker that got ^C too makes the driver's call fail."""
    try:
        listing(config)
    except KeyboardInterrupt:
        raise RuntimeError("the worker died")

def bug(config):
    raise ZeroDivisionError("a bug")

def swallowing(config):
    try:
        listing(config)
    except KeyboardInterrupt:
        time.sleep(60)

def held_up(config):
    """A thread that the interpreter waits for."""
    threading.Thread(target=time.sleep, args=(60,)).start()
    listing(config)

def in_c(config):
    """Python's handlers wait until it is over."""
    import ctypes
    say("ready")
    ctypes.CDLL(None).select(0, None, None, None, None)

def finished(config):
    return {"loss": float("nan"), "best": {"auc": float("inf"), "epochs": (1, 2)}}
'''

JOB = """
import sys
from deepfake_ray import interrupts
from deepfake_ray.drivers import cli
from deepfake_ray.config import ScoreConfig
interrupts.SECONDS_TO_END = 3.0
sys.exit(cli.main(ScoreConfig, sys.argv[1], sys.argv[2:]))
"""


@pytest.fixture
def job(tmp_path):
    """A command line, and the output that it is given."""
    (tmp_path / "stand_ins.py").write_text(STAND_INS)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    model = tmp_path / "model"

    def command(name, *flags):
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom deepfake_ray.drivers import checks\n"
        code += "checks.bundle.require_whole = lambda place: None\n" + JOB
        flags = ["--images", tmp_path / "images", "--model", model, "--output", tmp_path / "o", *flags]
        return [sys.executable, "-c", code, f"stand_ins:{name}", *map(str, flags)]

    model.mkdir()
    return command, tmp_path / "o"


def started(command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    for line in process.stderr:
        if line == "ready\n":
            return process
    raise AssertionError(process.stdout.read())


def signalled(command, *numbers):
    """The exit code, stdout, the lines of stderr after the first signal, and the seconds until the end."""
    process = started(command)
    began = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.7 if len(numbers) > 1 else 0)
    shown, said = process.communicate(timeout=30)
    return process.returncode, shown, said.splitlines(), time.monotonic() - began


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("writing", signal.SIGINT),
        ("writing", signal.SIGTERM),
        ("ray_train", signal.SIGINT),
        ("ray_init", signal.SIGTERM),
        ("failing_on_the_way_out", signal.SIGINT),
        ("swallowing", signal.SIGINT),
        ("held_up", signal.SIGTERM),
    ],
)
def test_one_line_and_the_code_whoever_has_the_handler(job, name, number):
    command, output = job
    if name != "writing":
        output.mkdir()
        (output / "config.json").touch()
    code, shown, (line,), seconds = signalled(command(name, "--resume"), number)
    assert code == CODES[number]
    assert line == f"{WORDS[number]}: what is written stays in {output}; the same command goes on from there"
    assert shown == ""
    assert seconds < 20
    assert not (output / "_SUCCESS").exists()


def test_it_names_resume_and_where_there_is_nothing_says_so(job):
    command, output = job
    line = signalled(command("writing"), signal.SIGINT)[2][0]
    assert line.endswith(f"what is written stays in {output}; the same command with --resume goes on from there")


def test_nothing_was_written(job):
    command, output = job
    code, _, (line,), _ = signalled(command("listing"), signal.SIGTERM)
    assert (code, line) == (143, "stopped by SIGTERM: nothing was written; the same command begins anew")
    assert not output.exists()


def test_a_second_ctrl_c_ends_at_once(job):
    command, _ = job
    code, _, (line,), seconds = signalled(command("swallowing"), signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert seconds < 2.5  # not the three seconds that a job has to end by itself
    assert line.startswith("interrupted: ")


def test_while_python_is_out_in_another_library(job):
    """The line comes at once all the same: `ray job stop` kills after three seconds."""
    command, _ = job
    process = started(command("in_c"))
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("stopped by SIGTERM: nothing was written")
    assert process.wait(timeout=10) == 143


def test_json(job):
    command, output = job
    done = subprocess.run(command("finished", "--json"), capture_output=True, text=True, check=True, cwd=ROOT)
    summary = json.loads(done.stdout)
    assert summary.pop("wall_s") > 0
    assert summary == {"loss": None, "best": {"auc": None, "epochs": [1, 2]}}
    _, shown, _, _ = signalled(command("writing", "--json"), signal.SIGINT)
    assert json.loads(shown) == {"error": "interrupted", "exit_code": 130}
    done = subprocess.run(command("finished", "--json"), capture_output=True, text=True, check=False, cwd=ROOT)
    failure = json.loads(done.stdout)
    assert failure["exit_code"] == done.returncode == 2
    assert f"error: {failure['error']}\n" == done.stderr
    assert failure["error"].startswith(f"output must be empty: {output}")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_bug_is_shown_whole(job, flags):
    command, _ = job
    done = subprocess.run(command("bug", *flags), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.endswith("\nZeroDivisionError: a bug\n")
    assert done.stderr.count("Traceback") == 1
    assert [json.loads(line) for line in done.stdout.splitlines()] == (
        [{"error": "ZeroDivisionError: a bug", "exit_code": 1}] if flags else []
    )


IMPORTING = """
import os, signal, sys, weakref

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "deepfake_ray.drivers.cli":
            class Forgotten: pass
            gone = Forgotten()
            reference = weakref.ref(gone, lambda _: os.kill(os.getpid(), int(sys.argv[1])))
            del gone  # an exception from a callback would be lost here

sys.meta_path.insert(0, Finder())
from deepfake_ray.starting import start
start("score")
"""


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM")])
def test_while_it_imports_what_it_needs(number, word):
    """A job that was interrupted half a second after its start showed a traceback, and went on to the end."""
    command = [sys.executable, "-c", IMPORTING, str(number.value)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (128 + number, f"{word}: nothing was begun\n")


def in_a_terminal(command, pattern, environment):
    """Run as in a terminal, press Ctrl-C when what it shows matches; the exit code and what it showed after that."""
    pid, terminal = pty.fork()
    if not pid:
        os.execve(command[0], command, environment)
    shown, at = "", None
    deadline = time.monotonic() + 150
    with contextlib.suppress(OSError):  # the other end is closed
        while True:
            assert time.monotonic() < deadline, shown
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
            if at is None and re.search(pattern, shown):
                everything = descendants(pid)
                at = len(shown)
                os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown[at:].replace("\r\n", "\n"), everything


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_in_a_terminal_while_it_trains_and_resume_ends_as_if_undisturbed(sample_folder, trained, tmp_path):
    output = tmp_path / "run"
    flags = ["--data", sample_folder, "--output", output, "--epochs", 2, "--global-batch-size", 64]
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), *map(str, flags)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    code, said, everything = in_a_terminal(command, "epoch 1: loss", environment)
    assert code == 130
    assert f"interrupted: what is written stays in {output}; the same command with --resume goes on" in said
    assert "Traceback" not in said
    assert not (output / "_SUCCESS").exists()
    time.sleep(2)  # a process looks each second whether its parent lives
    assert not [pid for pid in everything if pid in descendants(1)], command_lines(1)
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "done in" in done.stdout
    before, after = (json.loads((place / "model" / "model.json").read_text()) for place in (trained, output))
    assert before["sha256"] == after["sha256"]


@pytest.mark.ray
def test_a_training_leaves_ctrl_c_as_it_was(trained):
    """Ray Train's own handler stays, and swallows the next ones."""
    assert signal.getsignal(signal.SIGINT) is BEFORE
