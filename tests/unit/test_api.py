"""`from deepfake_ray import Detector`: the same scores as a job's, without Ray."""

import io
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from checkout import ROOT
from chunks import jpeg, listed, rows_of, scorer_spec
from PIL import Image

import deepfake_ray
from deepfake_ray import Detector, api, schema
from deepfake_ray.config import ScoreConfig, TrainConfig
from deepfake_ray.errors import UserError
from deepfake_ray.processes.isolation import Items
from deepfake_ray.scoring.worker import ChunkScorer


def test_scores_equal_those_of_a_job_to_the_bit(untrained, tmp_path):
    """The job has batches of 4 in chunks of 5; here all nine, among them a broken one, are one after the other."""
    files = {f"{i}.jpg": jpeg(i) for i in range(8)} | {"8.jpg": b"broken", "9.png": png(jpeg(3))}
    chunks = listed(tmp_path, files)
    spec = scorer_spec(untrained, tmp_path, batch_size=4)
    scorer = ChunkScorer(spec)
    for chunk in chunks:
        scorer(chunk, Items(lambda _: nullcontext()))
    expected = rows_of(spec, chunks)
    detector = Detector(untrained, threshold=0.5, batch_size=4, precision="fp32", use_gpu="no")
    found = detector([tmp_path / "images" / name for name in files])
    assert [row["logit"] for row in found].count(None) == 1
    for name, row in zip(files, found, strict=True):
        assert list(row) == schema.PREDICTIONS.names
        for column in set(row) - {"run_id", "scored_at"}:
            assert row[column] == expected[name][column], (name, column)


def png(data):
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def detector(untrained):
    return Detector(untrained, batch_size=2, precision="fp32", use_gpu="no")


def test_one_picture_in_all_its_forms_has_one_score(detector, tmp_path):
    data = png(jpeg(1))
    (tmp_path / "a.png").write_bytes(data)
    picture = Image.open(io.BytesIO(data))
    rows = detector([str(tmp_path / "a.png"), tmp_path / "a.png", data, picture, np.asarray(picture)])
    assert len({row["logit"] for row in rows}) == 1
    assert [row["uri"] for row in rows] == [str(tmp_path / "a.png")] * 2 + [None] * 3
    assert [row["format"] for row in rows] == ["png"] * 3 + [None] * 2
    assert {(row["width"], row["height"]) for row in rows} == {(32, 32)}
    assert {row["run_id"] for row in rows} == {None}
    alone = detector(data)
    assert (alone["logit"], alone["sha256"]) == (rows[2]["logit"], rows[2]["sha256"])


def test_what_is_broken_is_a_row(detector, tmp_path):
    half = Image.open(io.BytesIO(png(jpeg(0))[:900]))
    rows = detector([tmp_path / "none.jpg", b"", b"GIF", b"no image", half, Image.new("F", (9, 9)), jpeg(0)])
    assert [row["status"] for row in rows] == ["error"] * 6 + ["ok"]
    codes = [row["error_code"] for row in rows]
    assert codes[:2] == ["not_found", "empty"]
    assert codes[4:] == ["decode_failed", "unsupported_format", None]
    assert all(row["p_fake"] is None and row["predicted_label"] is None for row in rows[:6])
    assert detector([]) == []


def test_a_picture_is_upright_and_over_white(detector):
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:10] = 200
    sideways = Image.fromarray(np.rot90(pixels))  # counter-clockwise: EXIF 6 says to turn it clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.getexif().update(exif)
    clear = Image.new("RGBA", (20, 40), (0, 0, 0, 0))
    turned, straight, over_white, white = detector([sideways, pixels, clear, np.full((40, 20, 3), 255, np.uint8)])
    assert (turned["logit"], turned["height"]) == (straight["logit"], 40)
    assert over_white["logit"] == white["logit"] != straight["logit"]


def test_the_verdict_is_at_the_threshold(untrained):
    data = jpeg(0)
    p_fake = Detector(untrained, precision="fp32")(data)["p_fake"]
    below, above = (
        Detector(untrained, precision="fp32", threshold=number)(data) for number in (p_fake - 0.01, p_fake + 0.01)
    )
    assert (below["predicted_label"], above["predicted_label"]) == ("fake", "real")
    assert above["threshold"] == pytest.approx(p_fake + 0.01)
    assert Detector(untrained, threshold="fpr_1").threshold == 0.9


def test_the_callers_threads_stay_as_they_are(untrained):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Detector(untrained)(jpeg(0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (None, "must be a path or URI, bytes of a file.* got NoneType"),
        (3, "got int"),
        ("", "must be text, and name a file"),
        (np.zeros((9, 9), np.uint8), r"uint8 \(height, width, 3\), in RGB: got uint8 \(9, 9\)"),
        (np.zeros((9, 9, 3)), "got float64"),
        ("ftp://host/a.jpg", "A place is a local path or begins with"),
    ],
)
def test_what_is_no_image_at_all_is_a_mistake(detector, item, message):
    with pytest.raises(UserError, match=message):
        detector([jpeg(0), item])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "best"}, "threshold must be one of"),
        ({"crops": 2}, "crops above 1 need a model that was trained on crops"),
        ({"batch_size": 0}, "batch_size must be greater than 0"),
        ({"precision": "fp16"}, "precision must be one of auto, bf16, fp32: got 'fp16'"),
        ({"use_gpu": "maybe"}, "use_gpu must be one of"),
    ],
)
def test_mistakes_in_the_settings(untrained, options, message):
    with pytest.raises(UserError, match=message):
        Detector(untrained, **options)


def test_a_place_without_a_bundle(tmp_path):
    with pytest.raises(UserError, match="model must be a bundle"):
        Detector(tmp_path)


def loaded_after(code):
    check = "; import sys; print(sorted({'ray', 'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    return subprocess.run(
        [sys.executable, "-c", code + check], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.strip()


def test_importing_the_package_loads_nothing(untrained):
    assert loaded_after("import deepfake_ray; deepfake_ray.__version__") == "[]"
    after = loaded_after(f"from deepfake_ray import Detector; Detector({untrained!r})(b'')")
    assert after == "['numpy', 'pyarrow', 'torch']"


def test_every_exported_name_is_there():
    for name in deepfake_ray.__all__:
        assert getattr(deepfake_ray, name)
    assert set(deepfake_ray.__all__) <= set(dir(deepfake_ray))
    with pytest.raises(AttributeError, match="no attribute 'detect'"):
        deepfake_ray.detect  # noqa: B018


@pytest.mark.parametrize(
    ("job", "settings", "message"),
    [
        ("train", {"recipe": "robst"}, "recipe must be one of baseline, robust: got 'robst'"),
        ("train", {"use_gpu": True}, "use_gpu must be one of auto, yes, no: got True"),
        ("train", {"epochs": "3"}, "epochs must be int: got '3'"),
        ("train", {"epochs": 0}, "epochs must be greater than 0"),
        ("train", {"epoch": 3}, "A setting must be one of .*: got epoch"),
        ("score", {"model": "m", "images": []}, "images must name a place"),
        ("score", {"model": "m"}, "images must be given"),
        ("score", {"model": "m", "images": ["a", 3.5j]}, "images must be str"),
    ],
)
def test_settings_are_checked_as_flags_are(job, settings, message):
    needed = {"data": "d", "output": "o"} if job == "train" else {"output": "o"}
    with pytest.raises(UserError, match=message):
        getattr(deepfake_ray, job)(**needed, **settings)


def test_settings_may_be_paths_numbers_and_one_of_several(tmp_path):
    settings = {
        "images": tmp_path,
        "exclude": "thumbs/*",
        "model": tmp_path,
        "output": tmp_path / "o",
        "threshold": 0.5,
    }
    config = api.configured(ScoreConfig, settings)
    assert (config.images, config.exclude, config.threshold) == ((str(tmp_path),), ("thumbs/*",), "0.5")
    assert api.configured(ScoreConfig, settings | {"images": [tmp_path, "s3://b/c"]}).images == (
        str(tmp_path),
        "s3://b/c",
    )
    assert api.configured(TrainConfig, {"data": "d", "output": "o", "learning_rate": 1}).learning_rate == 1.0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBa", "RGB", "CMYK", "YCbCr", "I;16"])
def test_pictures_of_every_mode_are_read(detector, mode):
    before = {"RGBa": "RGBA", "PA": "P", "I;16": "I"}.get(mode, "RGB")
    picture = Image.new("RGB", (9, 9)).convert(before).convert(mode)
    assert picture.mode == mode
    black, found = detector([np.zeros((9, 9, 3), np.uint8), picture])
    assert found["status"] == "ok", found["error_message"]
    assert found["logit"] == pytest.approx(black["logit"], abs=0.05)
