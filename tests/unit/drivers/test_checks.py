"""A mistake costs no start of Ray: each is one line, exit code 2, and nothing is written."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkout import ROOT
from commands import loading

from deepfake_ray import config
from deepfake_ray.cluster import session
from deepfake_ray.config import EvaluateConfig, QuickstartConfig, ScoreConfig, TrainConfig
from deepfake_ray.drivers import checks, cli
from deepfake_ray.errors import JobError, UserError
from deepfake_ray.starting import JOBS

CONFIGS = {name: (getattr(config, class_name), job) for name, (class_name, job) in JOBS.items()}


@pytest.fixture(scope="module")
def places(sample_folder, untrained, tmp_path_factory):
    """Names in braces below -> places."""
    folder = tmp_path_factory.mktemp("places")
    image = next((sample_folder / "Test").rglob("*.jp*g"))
    (folder / "a_file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "old.txt").write_text("x")
    (folder / "no_uri.csv").write_text(f"path,label\n{image},real\n")
    (folder / "unlabelled").mkdir()
    (folder / "unlabelled" / "a.jpg").write_bytes(image.read_bytes())
    for name in ("Train", "Test"):
        for label in ("Real", "Fake"):
            (folder / "no_split" / name / label).mkdir(parents=True)
            (folder / "no_split" / name / label / f"{name}{label}.jpg").write_bytes(image.read_bytes())
    pq.write_table(pa.table({"image": ["a"]}), folder / "no_uri.parquet")
    (folder / "changed").mkdir()
    spec = json.loads(Path(untrained, "model.json").read_text())
    (folder / "changed" / "model.json").write_text(json.dumps({**spec, "temperature": 2.0}))
    (folder / "half").mkdir()
    (folder / "half" / "model.json").write_text(json.dumps(spec))
    (folder / "cut").mkdir()
    (folder / "cut" / "model.json").write_text(json.dumps(spec))
    weights = Path(untrained, "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "run.json").write_text("{}")
    names = [path.name for path in folder.iterdir()]
    return {
        **{name.replace(".", "_"): folder / name for name in names},
        "here": folder,
        "data": sample_folder,
        "model": untrained,
        "image": image,
        "nothing": folder / "nothing",
        "out": folder / "out",
    }


TRAIN = "train --data {data} --output {out}"
SCORE = "score --images {data}/Test --model {model} --output {out}"
EVALUATE = "evaluate --data {data} --model {model} --output {out}"
QUANTIZE = "quantize --data {data} --model {model} --output {out}"

# (command, where a flag that is given twice counts the second time; what the message says)
WITHOUT_RAY = [
    (f"{TRAIN} --data {{nothing}}", "{nothing} does not exist"),
    (f"{TRAIN} --data {{empty}}", "There must be an image in {empty}"),
    (f"{TRAIN} --data {{no_uri_csv}}", "must have a column uri: {no_uri_csv} has path, label"),
    (f"{TRAIN} --data ftp://host/images", "begins with s3://"),
    (f"{TRAIN} --labels {{nothing}}.csv", "{nothing}.csv does not exist"),
    (f"{TRAIN} --labels {{no_uri_parquet}}", "must have a column uri"),
    (f"{TRAIN} --labels {{image}}", "labels must be a table"),
    (f"{TRAIN} --group-regex (", "group-regex must be a regular expression"),
    (f"{TRAIN} --group-regex [a-z]+", "group-regex must have a (group)"),
    (f"{TRAIN} --weights {{nothing}}.pth", "{nothing}.pth does not exist"),
    (f"{TRAIN} --output {{a_file}}", "output must be a directory: {a_file} is a file"),
    (f"{TRAIN} --output {{a_file}}/below/it", "output must be a directory: {a_file} is a file"),
    (f"{TRAIN} --output {{full}}", "output must be empty: {full} holds old.txt"),
    (f"{TRAIN} --output /proc/out", "output must be writable: /proc is not"),
    (f"{TRAIN} --data=", "data must name a place: got ''"),
    (f"{TRAIN} --labels=", "labels must name a place: got ''"),
    (f"{SCORE} --skip-known=", "skip-known must name a place: got ''"),
    (f"{SCORE} --images {{nothing}}", "{nothing} does not exist"),
    (f"{SCORE} --images {{data}} {{empty}}", "There must be an image in {empty}"),
    (f"{SCORE} --images {{no_uri_parquet}}", "must have a column uri: {no_uri_parquet} has image"),
    (f"{SCORE} --include *.tga", "There must be an image in {data}/Test"),
    (f"{SCORE} --model {{nothing}}", "model must be a bundle"),
    (f"{SCORE} --model {{changed}}", "model must be as it was saved"),
    (f"{SCORE} --model {{half}}", "model must be a whole bundle"),
    (f"{SCORE} --model {{cut}}", "model must be as it was saved: {cut}/model.safetensors was changed or cut short"),
    (f"{SCORE} --threshold fpr_2", "threshold must be one of"),
    (f"{SCORE} --skip-known {{empty}}", "skip-known must name the output of a scoring run: {empty}"),
    (f"{EVALUATE} --compare {{nothing}}", "compare must be the output of jobs/evaluate.py: {nothing}"),
    (f"{EVALUATE} --predictions {{nothing}}", "predictions must be the output of jobs/score.py"),
    (f"{EVALUATE} --predictions {{unfinished}}", "predictions must be finished"),
    (f"{QUANTIZE} --model {{nothing}}", "model must be a bundle"),
    ("quickstart --output {a_file}", "output must be a directory: {a_file} is a file"),
]  # fmt: skip

# What takes torch, or the listing of all images.
BEFORE_RAY = [
    (f"{TRAIN} --arch resnet5", "got 'resnet5'; try resnet50"),
    (f"{TRAIN} --arch efficientnetb0", "try efficientnet_b0"),
    (f"{TRAIN} --image-size 8", "image-size must suit the arch: cnn does not take 8 px"),
    (f"{TRAIN} --weights imagenet", "weights imagenet exist for torchvision's models only"),
    (f"{TRAIN} --weights {{a_file}}", "weights must be a state_dict"),
    (f"{TRAIN} --data {{unlabelled}}", "Each image must lie in a class folder"),
    (f"{SCORE} --crops 3", "crops above 1 need a model that was trained on crops"),
    (f"{EVALUATE} --data {{unlabelled}}", "Each image must lie in a class folder"),
    (f"{EVALUATE} --data {{no_split}} --split validation", "has none in validation"),
    (f"{QUANTIZE} --data {{no_split}} --split-by folder", "has none in validation"),
]  # fmt: skip


def mistaken(command, places, capfd):
    """What the command line of a job says, to which a command is a mistake."""
    name, *flags = [word.format(**places) for word in command.split()]
    before = sorted(places["here"].rglob("*"))
    assert cli.main(*CONFIGS[name], flags) == 2
    assert sorted(places["here"].rglob("*")) == before, "something was written"
    shown, said = capfd.readouterr()
    assert shown == ""
    *others, line = said.splitlines()
    assert line.startswith("error: ")
    return others, line


@pytest.fixture
def without_ray(monkeypatch):
    """Whoever asks for Ray fails."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "_init", lambda *_, **__: pytest.fail("Ray is started"))
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)


@pytest.mark.parametrize(("command", "message"), WITHOUT_RAY)
def test_what_takes_neither_ray_nor_torch(places, command, message, capfd, monkeypatch):
    monkeypatch.setattr(cli, "resolve_name", lambda _: pytest.fail("the job is loaded"))
    others, line = mistaken(command, places, capfd)
    assert message.format(**places) in line
    assert set(others) <= {"looking at what the job is to read and write ..."}


@pytest.mark.parametrize(("command", "message"), BEFORE_RAY)
def test_what_takes_more_is_known_before_ray_is_started(places, command, message, capfd, without_ray):
    others, line = mistaken(command, places, capfd)
    assert message.format(**places) in line
    assert len(others) <= 3  # what it is doing


def test_checking_loads_neither_ray_nor_torch():
    assert loading(["drivers.cli", "drivers.checks"], ["ray", "torch"]) == ""


def test_a_mistake_as_a_user_makes_it(places):
    words = [sys.executable, str(ROOT / "jobs" / "train.py"), "--data", "nothing", "--output", "o", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=places["here"], check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("looking at")]  # on a busy machine
    assert line == f"error: The images must be there: {places['nothing']} does not exist; check the path."
    assert json.loads(done.stdout) == {"error": line.removeprefix("error: "), "exit_code": 2}


# --- Ray's own start


def test_ray_is_started_once_more_and_then_it_is_one_line(monkeypatch, capfd):
    """ray-project/ray 47087, 62883, 50474: on a busy machine it gives up after half a minute."""
    text = "The current node timed out during startup. This could happen because\nsome of the raylet failed"
    tries = []

    def init(**_):
        tries.append(1)
        if len(tries) in (1, 3, 4):
            raise Exception(text)  # as Ray raises it

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session.ray, "init", init)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "end_helpers", lambda: None)
    for name in (session.MARK, "RAY_BACKEND_LOG_LEVEL"):
        monkeypatch.setenv(name, "error")  # put back afterwards
    session.start_ray()
    assert len(tries) == 2
    assert "Ray did not start (The current node timed out during startup." in capfd.readouterr().err
    with pytest.raises(
        JobError, match=r"Ray did not start, twice: The current node timed out during startup"
    ) as caught:
        session.start_ray()
    assert len(tries) == 4
    assert "\n" not in str(caught.value)


# --- a submitted job


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """In the folder that Ray unpacks what was sent to."""
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("by", ["folder", "variable"])
def test_a_submitted_job_has_no_relative_output(by, tmp_path, untrained, sample_folder, monkeypatch, request):
    if by == "folder":
        folder = request.getfixturevalue("submitted")
    else:  # without --working-dir it runs where Ray was started
        folder = tmp_path
        monkeypatch.chdir(folder)
        monkeypatch.setenv(checks.SUBMITTED, "{}")
    config = {"images": (str(sample_folder),), "model": str(untrained)}
    for relative in (
        ScoreConfig(**config, output="runs/one"),
        TrainConfig(data=str(sample_folder), output="./run"),
        QuickstartConfig(),
    ):
        with pytest.raises(UserError, match="absolute path or a URI in a submitted job") as caught:
            checks.check(relative)
        assert str(folder) in str(caught.value)
        assert "Ray deletes" in str(caught.value)
    checks.check(ScoreConfig(**config, output=str(tmp_path / "shared" / "o")))
    checks.check(QuickstartConfig(output=str(tmp_path / "shared" / "o")))
    assert not list(folder.glob("run*"))


def test_a_submitted_job_says_where_it_looked_for_a_relative_input(submitted, tmp_path, untrained):
    config = EvaluateConfig(data="images/Test", model=str(untrained), output=str(tmp_path / "o"))
    with pytest.raises(UserError) as caught:
        checks.check(config)
    assert f"{submitted}/images/Test does not exist" in str(caught.value)
    assert f"a relative path such as images/Test is looked for in {submitted}" in str(caught.value)


def test_elsewhere_a_relative_output_is_as_good(tmp_path, untrained, sample_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(checks.SUBMITTED, raising=False)
    checks.check(ScoreConfig(images=(str(sample_folder),), model=str(untrained), output="o"))
    assert not list(tmp_path.iterdir())


def test_a_finished_output_is_resumed_without_its_inputs(tmp_path):
    (tmp_path / "_SUCCESS").touch()
    checks.check(ScoreConfig(images=("/gone",), model="/gone", output=str(tmp_path), resume=True))
