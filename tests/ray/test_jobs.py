"""The jobs on one local Ray of 2 CPUs."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import hostile
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkout import ROOT
from chunks import scorer_spec
from PIL import Image
from processes import kill_when, run_job, scorer_processes, start_job
from scored import read, score

from deepfake_ray import schema
from deepfake_ray.config import TrainConfig
from deepfake_ray.errors import JobError, UserError

pytestmark = pytest.mark.ray


def test_training_writes_what_it_promises(trained):
    present = set(os.listdir(trained))
    assert present >= {
        "model", "manifest", "audit.json", "history.csv", "training.png", "tensorboard", "config.json", "checkpoints",
        "_SUCCESS",
    }  # fmt: skip
    history = list(csv.DictReader(open(trained / "history.csv")))
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert all(0 <= float(row["data_wait_share"]) <= 1 for row in history)
    assert any(name.startswith("events") for name in os.listdir(trained / "tensorboard"))
    config = json.load(open(trained / "config.json"))
    assert (config["image_size"], config["weights"], config["num_workers"]) == (32, "none", 1)
    model = json.load(open(trained / "model" / "model.json"))
    best = max(history, key=lambda row: float(row["val_auc"]))
    assert model["provenance"]["best_epoch"] == int(best["epoch"])
    assert model["provenance"]["validation"]["roc_auc"] == pytest.approx(float(best["val_auc"]))
    Image.open(trained / "training.png").verify()


@pytest.mark.slow
def test_training_repeats_by_seed(ray_2_cpus, sample_folder, tmp_path):
    """On two workers; on one, test_survival.py has it."""
    from deepfake_ray.drivers.train import train

    histories = []
    for name in ("a", "b"):
        output = tmp_path / name
        train(
            TrainConfig(
                data=str(sample_folder),
                output=str(output),
                epochs=1,
                num_workers=2,
                global_batch_size=64,
            )
        )
        (row,) = csv.DictReader(open(output / "history.csv"))
        histories.append({k: v for k, v in row.items() if k.startswith(("train_", "val_"))})
    assert histories[0] == histories[1]


def test_unreadable_training_images_are_counted_or_too_many(ray_2_cpus, sample_folder, tmp_path):
    import shutil

    from deepfake_ray.drivers.train import train

    data = tmp_path / "data"
    shutil.copytree(sample_folder, data)
    (data / "Train" / "Real" / "00000.jpg").write_bytes(b"broken")
    (data / "Validation" / "Real" / "00000.jpg").write_bytes(b"broken")
    common = {"data": str(data), "epochs": 1, "global_batch_size": 100}
    train(TrainConfig(output=str(tmp_path / "run"), max_error_share=0.02, **common))
    (row,) = csv.DictReader(open(tmp_path / "run" / "history.csv"))
    assert (float(row["num_train_errors"]), float(row["num_val_errors"])) == (1, 1)
    with pytest.raises(JobError, match=r"1\.2% of the validation images .*00000\.jpg: not_an_image"):
        train(TrainConfig(output=str(tmp_path / "strict"), max_error_share=0.01, **common))
    assert not (tmp_path / "strict" / "_SUCCESS").exists()


def test_each_listed_image_has_one_row_and_scores_repeat(trained, sample_folder, tmp_path):
    images, model = sample_folder / "Test", trained / "model"
    run = score(images=images, model=model, output=tmp_path / "a", batch_size=16, profile=True)
    assert [stage["stage"] for stage in run["profile"]["stages"]] == ["fetch", "decode", "forward", "write"]
    assert all(stage["seconds"] > 0 for stage in run["profile"]["stages"])
    assert sum(stage["share"] for stage in run["profile"]["stages"]) == pytest.approx(1, abs=1e-3)
    assert "MapBatches(LoadAndScore)" in run["profile"]["ray_data"][0]
    first = read(tmp_path / "a")
    assert first.schema.equals(schema.PREDICTIONS, check_metadata=True)
    listed = sorted(str(path) for path in images.rglob("*.jpg"))
    assert sorted(first["uri"].to_pylist()) == listed
    assert first["row"].to_pylist() == list(range(80))
    assert (run["num_images"], run["num_ok"], run["num_errors"], run["errors_by_code"]) == (80, 80, 0, {})
    assert run["images_per_s"] > 0
    assert set(first["true_label"].to_pylist()) == {None}  # scoring infers no label from a folder's name
    assert "profile" not in score(images=images, model=model, output=tmp_path / "b", batch_size=16)
    assert first["logit"] == read(tmp_path / "b")["logit"]
    score(images=images, model=model, output=tmp_path / "c", batch_size=7)
    other = read(tmp_path / "c")["p_fake"].to_numpy()
    assert np.abs(first["p_fake"].to_numpy() - other).max() < 1e-4


def test_scores_are_those_of_the_bundle_alone(trained, sample_folder, tmp_path):
    """The pipeline's numbers against the model called by hand, in another process."""
    score(images=sample_folder / "Test" / "Real", model=trained / "model", output=tmp_path / "o")
    rows = read(tmp_path / "o").slice(0, 8)
    code = f"""
import json, numpy as np, torch
from PIL import Image
from safetensors.torch import load_file
from deepfake_ray.models.networks import BasicCnn
spec = json.load(open({str(trained / "model" / "model.json")!r}))
net = BasicCnn().eval(); net.load_state_dict(load_file({str(trained / "model" / "model.safetensors")!r}))
out = []
for uri in {rows["uri"].to_pylist()!r}:
    x = torch.tensor(np.asarray(Image.open(uri).convert("RGB"))).permute(2, 0, 1)[None] / 255
    p = spec["preparation"]
    x = (x - torch.tensor(p["mean"]).view(3, 1, 1)) / torch.tensor(p["std"]).view(3, 1, 1)
    z = net(x)[0]
    out.append(torch.sigmoid((z[1] - z[0]) / spec["temperature"]).item())
print(json.dumps(out))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    # Pillow and simplejpeg may round a pixel differently.
    assert rows["p_fake"].to_pylist() == pytest.approx(json.loads(found), abs=2e-3)


def hostile_folder(folder):
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))

    def encoded(image, kind):
        data = io.BytesIO()
        image.save(data, kind)
        return data.getvalue()

    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    deep = Image.fromarray((np.arange(1600).reshape(40, 40) * 40).astype(np.uint16))
    files = {
        "good.jpg": (jpeg, None),
        "cmyk.jpg": (encoded(picture.convert("CMYK"), "JPEG"), None),
        "deep.png": (encoded(deep, "PNG"), None),
        "png named.jpg": (png, None),
        "odd # name %20?.png": (png, None),
        "new\nline.png": (png, None),
        "quotes'\".png": (png, None),
        "caf\\xe9.png": (png, None),  # a byte that is not UTF-8
        "broken.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "ended.jpg": (jpeg[: len(jpeg) // 2] + b"\xff\xd9", "truncated"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"no image at all", "not_an_image"),
        "cut.png": (png[: len(png) // 2], "truncated"),
    }
    for name, (data, _) in files.items():
        (folder / os.fsdecode(name.encode().replace(b"\\xe9", b"\xe9"))).write_bytes(data)
    (folder / "gigabyte.jpg").write_bytes(jpeg)
    os.truncate(folder / "gigabyte.jpg", 1 << 30)
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    (folder / "notes.txt").write_text("not listed as an image")
    return {name: code for name, (_, code) in files.items()} | {"gone.jpg": "not_found", "gigabyte.jpg": "too_large"}


def test_broken_files_are_rows_with_codes(trained, tmp_path):
    """The folder of a few whose code is known, and some 330 mutated ones: each its row, none of the cut ones scored."""
    expected = hostile_folder(tmp_path / "images")
    mutated = dict([*hostile.truncated(), *hostile.flipped(), *hostile.wrong_headers(), *hostile.huge()])
    assert len(mutated) >= 300
    for name, data in mutated.items():
        (tmp_path / "images" / f"{name}.jpg").write_bytes(data)
    run = score(images=tmp_path / "images", model=trained / "model", output=tmp_path / "o", max_error_share=1.0)
    rows = {os.path.basename(row["uri"]): row for row in read(tmp_path / "o").to_pylist()}
    assert set(rows) == {f"{name}.jpg" for name in mutated} | set(expected)
    assert {name: rows[name]["error_code"] for name in expected} == expected
    for name, row in rows.items():
        scored = (row["logit"], row["p_fake"], row["predicted_label"])
        if row["status"] == "ok":
            assert None not in scored
            assert row["error_code"] is row["error_message"] is None
            assert name in expected or "-flip-" in name
        else:
            assert scored == (None, None, None)
            assert None not in (row["error_code"], row["error_message"])
    assert {rows[f"{name}.jpg"]["error_code"] for name, _ in hostile.huge()} == {"too_large"}
    codes = Counter(row["error_code"] for row in rows.values() if row["error_code"])
    assert run["errors_by_code"] == dict(codes)
    assert (run["num_images"], run["num_errors"]) == (len(rows), codes.total())
    assert run["num_other_files"] == 1
    assert rows["good.jpg"]["jpeg_quality"] == 75
    assert rows["png named.jpg"]["format"] == "png"


def test_known_scores_are_taken_over(trained, sample_folder, tmp_path):
    first = score(images=sample_folder / "Test", model=trained / "model", output=tmp_path / "a")
    again = score(
        images=sample_folder / "Test", model=trained / "model", output=tmp_path / "b", skip_known=str(tmp_path / "a")
    )
    assert (first["num_known"], again["num_known"], again["num_ok"]) == (0, 80, 80)
    changing = ["run_id", "scored_at"]
    assert read(tmp_path / "a").drop(changing) == read(tmp_path / "b").drop(changing)
    assert sorted(os.listdir(tmp_path / "b")) == ["_SUCCESS", "manifest", "predictions", "run.json"]


def test_readme_and_docs_read_the_predictions(trained, sample_folder, tmp_path):
    """Their Python blocks, run as they stand."""
    score(images=sample_folder / "Test", model=trained / "model", output=tmp_path / "runs" / "first-scores")
    pages = [(ROOT / page).read_text() for page in ("README.md", "docs/scoring.md")]
    code = "\n".join(block for page in pages for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "runs" / "first-scores")
    num_fake = rows["predicted_label"].to_pylist().count("fake")
    assert f"\n{num_fake}\n" in done.stdout
    assert re.search(rf"fake\s+│\s+{num_fake} ", done.stdout)


@pytest.mark.slow
def test_a_robust_model_is_trained_on_crops_and_scores_them(ray_2_cpus, sample_folder, tmp_path):
    from deepfake_ray.drivers.train import train

    output = tmp_path / "run"
    train(
        TrainConfig(
            data=str(sample_folder), output=str(output), epochs=1, recipe="robust", image_size=24, limit=80,
            global_batch_size=16, reencode=True,
        )
    )  # fmt: skip
    model = json.load(open(output / "model" / "model.json"))
    assert (model["preparation"]["resize"], model["preparation"]["image_size"]) == ("crop", 24)
    assert model["preparation"]["reencode"] == 90
    assert "a square of 24 x 24 px cut out of it" in (output / "model" / "MODEL_CARD.md").read_text()
    images = sample_folder / "Test" / "Real"
    score(images=images, model=output / "model", output=tmp_path / "one")
    score(images=images, model=output / "model", output=tmp_path / "four", crops=4)
    one, four = (read(tmp_path / name)["logit"].to_numpy() for name in ("one", "four"))
    assert np.abs(one - four).max() > 0
    assert np.corrcoef(one, four)[0, 1] > 0.5


def test_an_image_in_two_splits_is_refused_or_left_out(ray_2_cpus, sample_folder, tmp_path):
    from deepfake_ray.drivers.train import train

    data = tmp_path / "data"
    shutil.copytree(sample_folder, data)
    original = next((data / "Train" / "Real").rglob("*.jpg"))
    shutil.copy(original, data / "Test" / "Real" / "copy.jpg")
    config = TrainConfig(data=str(data), output=str(tmp_path / "o"), epochs=1)
    with pytest.raises(UserError, match=r"1 images are in two splits and 0 in two classes.*copy\.jpg.*--allow-leaks"):
        train(config)
    assert not (tmp_path / "o").exists()
    train(replace(config, leaks="drop"))
    found = json.load(open(tmp_path / "o" / "audit.json"))
    (dropped,) = found["dropped"]
    assert (dropped["uri"], dropped["kept_uri"]) == (str(original), str(data / "Test" / "Real" / "copy.jpg"))
    assert (dropped["split"], dropped["label"], dropped["reason"]) == ("train", "real", "in test, too")
    assert found["num_images"]["train"] == {"real": 199, "fake": 200}
    model = json.load(open(tmp_path / "o" / "model" / "model.json"))
    assert model["provenance"]["data"]["num_images"] == found["num_images"]
    written = pq.read_table(tmp_path / "o" / "manifest")["uri"].to_pylist()
    assert len(written) == len(set(written)) == 560
    assert str(original) not in written
    seen = pq.read_table(tmp_path / "o" / "model" / "training_images.parquet")
    assert len(seen) == 399 + 80
    assert str(original) not in seen["uri"].to_pylist()
    assert found["duplicates"] == {
        "num_across_splits": 1, "num_across_classes": 0,
        "examples": [sorted([str(original), str(data / "Test" / "Real" / "copy.jpg")])],
    }  # fmt: skip
    assert 0 <= found["zero_pixel_auc"] <= 1


def test_crops_need_a_model_that_crops(trained, sample_folder, tmp_path):
    with pytest.raises(UserError, match="crops above 1 need a model that was trained on crops: got 4"):
        score(images=sample_folder, model=trained / "model", output=tmp_path / "o", crops=4)


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with VNNI")
def test_a_quantised_model_has_thresholds_of_its_own_and_nearly_the_same_scores(trained, sample_folder, tmp_path):
    from sklearn.metrics import roc_auc_score

    from deepfake_ray.config import QuantizeConfig
    from deepfake_ray.drivers.quantize import quantize
    from deepfake_ray.models import bundle

    model, output = str(trained / "model"), str(tmp_path / "int8")
    before = bundle.load_spec(model)
    after = quantize(QuantizeConfig(data=str(sample_folder), model=model, output=output, calibration_images=40))
    assert after == bundle.load_spec(f"{output}/model")
    assert after.scales
    assert (after.sha256, after.preparation) == (before.sha256, before.preparation)
    assert after.thresholds != before.thresholds
    assert sorted(os.listdir(output)) == ["_SUCCESS", "model"]
    assert (tmp_path / "int8" / "model" / "training_images.parquet").exists()
    auc = after.provenance["validation"]["roc_auc"]
    assert auc == pytest.approx(before.provenance["validation"]["roc_auc"], abs=0.02)
    score(images=sample_folder / "Validation", model=f"{output}/model", output=tmp_path / "v")
    validation = pd.read_parquet(tmp_path / "v" / "predictions")
    assert roc_auc_score(["/Fake/" in uri for uri in validation.uri], validation.logit) == pytest.approx(auc, abs=1e-9)

    score(images=sample_folder / "Test", model=model, output=tmp_path / "a")
    score(images=sample_folder / "Test", model=f"{output}/model", output=tmp_path / "b")
    floating, integer = (pd.read_parquet(tmp_path / name / "predictions") for name in "ab")
    assert np.corrcoef(floating.logit, integer.logit)[0, 1] > 0.99
    assert set(integer.model_id) == {after.model_id} != set(floating.model_id)
    for wrong in ({"compile": True}, {"use_gpu": "yes"}, {"precision": "bf16"}):
        with pytest.raises(UserError, match="A quantised model runs on CPUs"):
            score(images=sample_folder / "Test", model=f"{output}/model", output=tmp_path / "c", **wrong)
    with pytest.raises(UserError, match="quantised already"):
        quantize(QuantizeConfig(data=str(sample_folder), model=f"{output}/model", output=str(tmp_path / "d")))


def test_nothing_scored_is_a_failure_with_rows(trained, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(JobError, match="no image could be scored: empty 1"):
        score(images=tmp_path / "images", model=trained / "model", output=tmp_path / "o")
    assert read(tmp_path / "o")["error_code"].to_pylist() == ["empty"]
    assert not (tmp_path / "o" / "_SUCCESS").exists()


def test_too_many_errors_stop_the_run(trained, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(1500):
        (tmp_path / "images" / f"{i:04d}.jpg").write_bytes(b"x")
    with pytest.raises(JobError, match=r"cannot be read \(not_an_image .*over --max-error-share 0\.5"):
        score(images=tmp_path / "images", model=trained / "model", output=tmp_path / "o")


def test_a_killed_scoring_run_goes_on_with_resume(trained, sample_folder, tmp_path, monkeypatch):
    """kill -9 of the driver in mid-run; then exactly the rows of a run that was never killed, some of them kept."""
    from deepfake_ray.scoring import chunk_files

    options = {"images": sample_folder, "model": trained / "model", "batch_size": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    score(**options, output=whole)
    assert [path.name for path in (whole / "predictions").iterdir()] == ["part-00000.parquet"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    job = start_job("score", *flags, "--output", cut)
    kill_when(job, lambda: len(list((cut / "chunks").glob("chunk-*"))) >= 3)
    (cut / "predictions").mkdir()
    (cut / "predictions" / ".0123.tmp").write_bytes(b"what a killed writer leaves")
    assert not (cut / "_SUCCESS").exists()
    with pytest.raises(UserError, match="output must be empty.*--resume"):
        score(**options, output=cut)
    with pytest.raises(UserError, match="threshold was 'balanced' and is now 'default'"):
        score(**options, output=cut, resume=True, threshold="default")
    with pytest.raises(UserError, match="images was .*sample.* and is now"):
        score(**{**options, "images": sample_folder / "Test"}, output=cut, resume=True)
    resumed_at = datetime.now(UTC)
    monkeypatch.setattr(chunk_files, "ROWS_PER_PART", 100)
    run = score(**options, output=cut, resume=True)
    names = sorted(os.listdir(cut / "predictions"))
    assert names == [f"part-{i:05d}.parquet" for i in range(len(names))]
    assert len(names) >= 5
    assert not (cut / "chunks").exists()
    rows, expected = read(cut), read(whole)
    assert rows.drop(["scored_at", "run_id"]) == expected.drop(["scored_at", "run_id"])
    assert run["num_images"] == len(rows) == len(set(rows["uri"].to_pylist())) == 560
    kept = [when < resumed_at for when in rows["scored_at"].to_pylist()]
    assert 6 <= sum(kept) < 560
    before = {name: (cut / "predictions" / name).stat().st_mtime_ns for name in names}
    assert score(**options, output=cut, resume=True)["num_images"] == 560  # finished: nothing is done
    assert {name: (cut / "predictions" / name).stat().st_mtime_ns for name in names} == before


@pytest.mark.parametrize("victim", ["worker", "process"])
def test_a_killed_scorer_is_replaced(trained, sample_folder, tmp_path, victim, monkeypatch):
    """kill -9 of an actor, or of the process that it scores in, in mid-run; the run ends with every row."""
    from deepfake_ray.drivers import score as driver

    output = tmp_path / "o"
    killed = []

    def reports_of(dataset, reports_of=driver.reports_of):
        """Not before the second chunk is written, and before the last one can be."""
        for number, report in enumerate(reports_of(dataset)):
            if number == 1 and not killed:
                pid = scorer_processes()[0][0 if victim == "worker" else 1]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            yield report

    monkeypatch.setattr(driver, "reports_of", reports_of)
    run = score(images=sample_folder, model=trained / "model", output=output, batch_size=2)
    assert len(killed) == 1
    assert (run["num_ok"], run["num_errors"]) == (560, 0)
    assert len(set(read(output)["uri"].to_pylist())) == 560


def test_loaders_feed_the_actors_of_gpus(ray_2_cpus, untrained, sample_folder, tmp_path):
    """The pipeline of a GPU cluster, its one actor on a CPU here: the same rows as where each CPU does it all."""
    from deepfake_ray.cluster.placement import ScoringPlacement
    from deepfake_ray.data import manifest
    from deepfake_ray.scoring.actors import reports_of, scoring_dataset
    from deepfake_ray.scoring.spec import chunk_file

    images = tmp_path / "images"
    shutil.copytree(sample_folder / "Test", images)
    (images / "broken.jpg").write_bytes(b"")
    manifest.write(manifest.list_images(str(images)), str(tmp_path / "manifest"))
    (images / "broken.jpg").unlink()
    chunks = manifest.chunks(str(tmp_path / "manifest"), rows_per_chunk=20)
    placements = {
        "cpu": ScoringPlacement(use_gpu=False, num_actors=2, cpus_per_actor=1),
        "gpu": ScoringPlacement(use_gpu=False, num_actors=1, cpus_per_actor=0.5, num_loaders=1, cpus_per_loader=1),
    }
    tables = {}
    for name, placement in placements.items():
        (tmp_path / name).mkdir()
        spec = scorer_spec(untrained, tmp_path / name)
        reports = list(reports_of(scoring_dataset(chunks, spec, placement)))
        assert sorted(report.num_images for report in reports) == [1, 20, 20, 20, 20]
        assert sum(report.errors_by_code["not_found"] for report in reports) == 1
        files = [chunk_file(spec.chunks, chunk.index) for chunk in chunks]
        tables[name] = pa.concat_tables(map(pq.read_table, files)).drop(["scored_at"])
    assert tables["cpu"] == tables["gpu"]


def test_one_image_and_a_limit(trained, sample_folder, tmp_path):
    one = next((sample_folder / "Test" / "Real").glob("*.jpg"))
    assert score(images=one, model=trained / "model", output=tmp_path / "a")["num_images"] == 1
    run = score(images=sample_folder / "Test", model=trained / "model", output=tmp_path / "b", limit=5)
    assert run["num_images"] == 5


def test_all_actors_work(trained, sample_folder, tmp_path, monkeypatch):
    """A manifest is small; Ray would make one block of it, and one actor would do everything."""
    from deepfake_ray.drivers import score as driver

    reports = []

    def reports_of(dataset, reports_of=driver.reports_of):
        for report in reports_of(dataset):
            reports.append(report)
            yield report

    monkeypatch.setattr(driver, "reports_of", reports_of)
    run = score(images=sample_folder / "Train", model=trained / "model", output=tmp_path / "o", batch_size=8)
    assert run["num_images"] == sum(report.num_images for report in reports) == 400
    # An actor works on one chunk at a time: where two overlap, two actors were at work.
    in_order = sorted(reports, key=lambda report: report.started_at)
    assert any(later.started_at < earlier.ended_at for earlier, later in pairwise(in_order))


def test_a_scorer_that_cannot_be_made_says_why(ray_2_cpus, untrained, sample_folder, tmp_path):
    from deepfake_ray.cluster.placement import ScoringPlacement
    from deepfake_ray.data import manifest
    from deepfake_ray.scoring.actors import reports_of, scoring_dataset

    manifest.write(manifest.list_images(str(sample_folder / "Test")), str(tmp_path / "manifest"))
    chunks = manifest.chunks(str(tmp_path / "manifest"), rows_per_chunk=20)
    placement = ScoringPlacement(use_gpu=False, num_actors=1, cpus_per_actor=1)
    spec = replace(scorer_spec(untrained, tmp_path / "out"), model=str(tmp_path / "gone"))
    with pytest.raises(
        JobError, match=r"a scorer failed: deepfake_ray\.errors\.UserError: model must be .*/gone has none;"
    ):
        list(reports_of(scoring_dataset(chunks, spec, placement)))


def test_a_job_that_has_to_wait_says_what_is_free(ray_2_cpus, capsys):
    from deepfake_ray.cluster.session import Patience

    with Patience("score", interval_s=0.05) as patience:
        time.sleep(0.5)
        patience.begun()
        time.sleep(0.1)
        said = capsys.readouterr().err
        time.sleep(0.2)
    assert re.search(r"score: no result yet \([\d.]+ of 2 CPUs are free\); what other jobs hold is waited for", said)
    assert capsys.readouterr().err == ""


def test_a_mistake_exits_with_2_and_one_clear_line(ray_2_cpus, tmp_path):
    (tmp_path / "Real").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "Real" / "a.png")
    done = run_job("train", "--data", tmp_path, "--output", tmp_path / "o")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "There must be images of both classes" in line
    assert not (tmp_path / "o").exists()
