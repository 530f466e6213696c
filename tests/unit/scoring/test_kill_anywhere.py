"""A scoring run that is killed, or whose disk is full, or that another one meets, wherever it changes a file."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkout import ROOT
from chunks import jpeg
from serial import EXIT

CHANGING = ["run_id", "scored_at"]
FORBIDDEN = ["03.jpg", "10.jpg"]
KILLED = -9


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Has `score` called in a process of its own."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    command = [sys.executable, str(ROOT / "tests" / "support" / "serial.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(config, at=0, action=None, forbid=()):
        line = json.dumps({"config": config, "at": at, "action": action, "forbid": list(forbid), "log": str(log)})
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        return int(process.stdout.readline()), log.read_text()

    yield ask
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def config(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(11):
        (folder / f"{i:02d}.jpg").write_bytes(jpeg(i))
    (folder / "05.jpg").write_bytes(b"broken")
    (folder / "notes.txt").write_text("")
    return {"images": str(folder), "model": untrained, "batch_size": 3}


@pytest.fixture(scope="module")
def whole(program, config, tmp_path_factory):
    """The output of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("whole") / "o"
    code, said = program({**config, "output": str(output)})
    assert code == EXIT["ok"], said
    return output


@pytest.fixture(scope="module")
def gaps(program, config, tmp_path_factory):
    """A finished output of three parts, two of them with images that the storage refused."""
    output = tmp_path_factory.mktemp("gaps") / "o"
    code, said = program({**config, "output": str(output)}, forbid=FORBIDDEN)
    assert code == EXIT["ok"], said
    assert json.loads((output / "run.json").read_text())["errors_by_code"] == {"forbidden": 2, "not_an_image": 1}
    return output


def rows(output):
    parts = sorted((output / "predictions").glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def require_whole(output, expected):
    """A finished output like another."""
    assert sorted(os.listdir(output)) == sorted(os.listdir(expected))
    for folder in ("predictions", "manifest"):
        assert sorted(os.listdir(output / folder)) == sorted(os.listdir(expected / folder))
    require_right(output, expected)


def require_right(output, expected):
    found = rows(output)
    assert found.schema.equals(rows(expected).schema, check_metadata=True)
    assert found.drop(CHANGING) == rows(expected).drop(CHANGING)
    run, other = (json.loads((place / "run.json").read_text()) for place in (output, expected))
    same = ("status", "num_images", "num_ok", "num_errors", "errors_by_code", "num_predicted", "p_fake_histogram")
    assert {name: run[name] for name in same} == {name: other[name] for name in same}


def require_sound(output, expected):
    """No half file; and finished only if it is."""
    for path in output.rglob("*.parquet"):
        pq.read_table(path)
    for path in output.rglob("*.json"):
        json.loads(path.read_text())
    if (output / "_SUCCESS").exists():
        require_right(output, expected)


def test_the_run_has_several_parts(whole):
    assert sorted(os.listdir(whole)) == ["_SUCCESS", "manifest", "predictions", "run.json"]
    assert len(os.listdir(whole / "predictions")) == 3
    assert rows(whole)["row"].to_pylist() == list(range(11))


@pytest.mark.parametrize("begin", ["a new run", "gaps"])
@pytest.mark.parametrize("action", ["kill", "fail"])
def test_interrupted_anywhere_and_resumed_it_is_as_if_nothing_had_happened(
    program, config, whole, gaps, tmp_path, action, begin
):
    for at in range(1, 1000, 2):  # what the disk holds after a deed it holds before the next
        output = tmp_path / str(at)
        asked = {**config, "output": str(output), "resume": begin == "gaps"}
        if begin == "gaps":
            shutil.copytree(gaps, output)
        code, said = program(asked, at, action)
        if code == EXIT["not reached"]:
            break
        assert "Traceback" not in said
        if action == "kill":
            assert code == KILLED, said
        elif code != EXIT["ok"]:  # nothing depended on it
            assert code in (EXIT["JobError"], EXIT["UserError"]), said
            (line,) = [line for line in said.splitlines() if line.startswith(("failed:", "error:"))]
            assert "No space left on device" in line or "Permission denied" in line
        if output.exists():
            require_sound(output, gaps if begin == "gaps" and _has_gaps(output) else whole)
        code, said = program({**asked, "resume": True})
        assert code == EXIT["ok"], (at, said)
        require_whole(output, whole)
        shutil.rmtree(output)
    assert at > 20
    require_whole(output, whole)


def _has_gaps(output):
    return "forbidden" in rows(output)["error_code"].to_pylist()


@pytest.mark.parametrize("action", ["second run", "taken over"])
def test_a_second_run_that_comes_at_any_time(program, config, whole, tmp_path, action):
    """It is refused while the first has the output; where it takes over, the first notices before it publishes."""
    codes = set()
    for at in range(1, 1000, 2):
        output = tmp_path / str(at)
        code, said = program({**config, "output": str(output)}, at, action)
        assert "Traceback" not in said
        if code == EXIT["not reached"]:
            break
        codes.add(code)
        assert (output / "_SUCCESS").exists()
        if code == EXIT["JobError"]:
            assert "is no longer this run's" in said, said
            assert rows(output).drop(CHANGING) == rows(whole).drop(CHANGING)
            # Held up between its look at the lock and its writing, the first leaves a run.json that is not the last.
            assert program({**config, "output": str(output), "resume": True})[0] == EXIT["ok"]
        require_right(output, whole)
    assert at > 20
    # Before the first has the lock, the second is through, and the first finds its output in use.
    assert codes == {EXIT["ok"], EXIT["UserError"]} | ({EXIT["JobError"]} if action == "taken over" else set())


@pytest.mark.parametrize("is_new", [True, False])
def test_a_bundle_that_was_cut_off_is_none_or_the_old_one(untrained, tmp_path, monkeypatch, is_new):
    """Never the weights of one with the thresholds of another."""
    from dataclasses import replace

    from deepfake_ray.errors import UserError
    from deepfake_ray.models import bundle

    spec, arrays = bundle.load(untrained)
    os_replace = os.replace
    for at in range(1, 10):
        place = tmp_path / str(at)
        if not is_new:
            shutil.copytree(untrained, place)
        count = []

        def cut_off(*names, at=at, count=count):
            count.append(names)
            if len(count) == at:
                raise KeyboardInterrupt
            os_replace(*names)

        other = {name: array + np.ones((), array.dtype) for name, array in arrays.items()}
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", cut_off)
            bundle.save(str(place), replace(spec, temperature=3.0), other)
        if len(count) < at:
            break
        found = weights = None
        with contextlib.suppress(UserError):
            found, weights = bundle.load(str(place))
        if found is not None:
            assert found == spec
            assert all((weights[name] == arrays[name]).all() for name in arrays)
    assert at == 4
    assert bundle.load(str(place))[0].temperature == 3.0
