"""`--resume`: only the same run is gone on with, or is finished already."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import serial
from chunks import jpeg

from deepfake_ray.cluster import precision
from deepfake_ray.config import EvaluateConfig, QuantizeConfig, ScoreConfig, TrainConfig
from deepfake_ray.data.predictions import warnings_of
from deepfake_ray.drivers import resuming
from deepfake_ray.drivers.score import score
from deepfake_ray.errors import ErrorCode, ImageError, UserError
from deepfake_ray.images import loading
from deepfake_ray.models import bundle
from deepfake_ray.scoring import tally
from deepfake_ray.storage import files, outputs


@pytest.fixture
def config(untrained, tmp_path, monkeypatch):
    """Of a scoring run that needs neither Ray nor torch."""
    serial.without_ray(monkeypatch.setattr)
    serial.without_torch(monkeypatch.setitem)
    (tmp_path / "images").mkdir()
    for i in range(7):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(jpeg(i))
    return ScoreConfig(images=(str(tmp_path / "images"),), model=untrained, output=str(tmp_path / "o"), batch_size=2)


def other_model(model, place, **changes):
    spec, arrays = bundle.load(model)
    bundle.save(str(place), replace(spec, **changes), arrays)
    return str(place)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_a_finished_output_of_something_else_is_refused_by_name(config, tmp_path):
    """A nightly job with a new model, --resume and the old output was green with the old scores."""
    first = score(config)
    resumed = replace(config, resume=True)
    before = contents(config.output)
    new = other_model(config.model, tmp_path / "new", temperature=2.0)
    new_id = bundle.load_spec(new).model_id
    with pytest.raises(UserError, match=rf"model was .* \({first['model_id']}\) and is now .*/new \({new_id}\)"):
        score(replace(resumed, model=new))
    (tmp_path / "others").mkdir()
    for change, message in (
        ({"images": (str(tmp_path / "others"),)}, r"images was \['.*/images'\] and is now \['.*/others'\]"),
        ({"threshold": "fpr_1"}, "threshold was 'balanced' and is now 'fpr_1'"),
        ({"limit": 3}, "limit was None and is now 3"),
        ({"include": ("*.jpg",)}, "include was"),
        ({"precision": "bf16"}, "precision was 'auto' and is now 'bf16'"),
        ({"max_image_pixels": 10}, "max_image_pixels was"),
        ({"batch_size": 3}, "batch_size was 2 and is now 3"),
    ):
        with pytest.raises(UserError, match=message):
            score(replace(resumed, **change))
    assert contents(config.output) == before


def test_only_the_same_is_finished_already(config, tmp_path, capsys):
    first = score(config)
    before = contents(config.output)
    (tmp_path / "images" / "new.jpg").write_bytes(jpeg(9))
    copy = other_model(config.model, tmp_path / "copy")
    assert first["precision"] == "fp32"
    for same in (
        {},
        {"num_workers": 1},
        {"profile": True},
        {"image_timeout_s": 5.0},
        {"model": copy},
        {"precision": "fp32"},
    ):
        assert score(replace(config, resume=True, **same)) == first
    assert contents(config.output) == before
    said = capsys.readouterr().err
    assert f"is finished already: 7 images were scored on {first['finished_at']} by model {first['model_id']};" in said
    assert (
        f"images that came since are not in it: score them into a new output with --skip-known {config.output}" in said
    )


def test_a_finished_output_of_another_job_is_refused(config):
    outputs.mark_finished(config.output)
    with pytest.raises(UserError, match=r"has no run\.json, so it is of another job"):
        score(replace(config, resume=True))


def test_predictions_that_are_gone_are_made_again(config, capsys):
    score(config)
    shutil.rmtree(Path(config.output, "predictions"))
    assert score(replace(config, resume=True))["num_ok"] == 7
    assert "predictions is gone: once more" in capsys.readouterr().err
    assert len(pq.read_table(Path(config.output, "predictions"))) == 7


def test_a_threshold_that_moved_in_the_same_model_is_noticed(config, tmp_path):
    """The model's id does not hold its thresholds."""
    from deepfake_ray.models.scores import threshold_at

    score(config)
    spec = bundle.load_spec(config.model)
    thresholds = spec.thresholds | {"balanced": threshold_at(0.75, spec.temperature)}
    moved = other_model(config.model, tmp_path / "moved", thresholds=thresholds)
    assert bundle.load_spec(moved).model_id == spec.model_id
    with pytest.raises(UserError, match=r"threshold balanced was at a logit of 0 and is now at 1\.098"):
        score(replace(config, model=moved, resume=True))


def test_an_output_of_an_older_version_is_recognised(config, monkeypatch):
    """It knew fewer settings, and kept less."""
    score(config)
    place = Path(config.output, "run.json")
    run = json.loads(place.read_text())
    for name in ("threshold_logit", "finished_at", "drivers"):
        del run[name]
    for name in ("compile", "crops", "exclude"):
        del run["config"][name]
    place.write_text(json.dumps(run))
    assert score(replace(config, resume=True)) == run
    with pytest.raises(UserError, match="crops was 1 and is now 2"):
        resuming.require_same_scores(replace(config, crops=2), run)
    os.remove(Path(config.output, "_SUCCESS"))
    assert score(replace(config, resume=True))["num_ok"] == 7


def test_a_finished_run_tries_again_what_the_storage_failed_to_give(config, monkeypatch, capsys):
    fetch = loading.fetch

    def fails(uri, *more):
        if Path(uri).name in ("1.jpg", "6.jpg"):
            raise ImageError(ErrorCode.TIMEOUT, "away")
        return fetch(uri, *more)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "fetch", fails)
        first = score(config)
    assert first["errors_by_code"] == {"timeout": 2}
    with monkeypatch.context() as patch:  # a machine that computes otherwise than the one before
        patch.setattr(precision, "resolve", lambda *_, **__: "bf16")
        with pytest.raises(UserError, match="precision"):
            score(replace(config, resume=True))
    assert (Path(config.output) / "_SUCCESS").exists(), "what is refused stays finished"
    capsys.readouterr()
    run = score(replace(config, resume=True))
    assert (
        "is finished, but for images that the storage failed to give (timeout 2): once more" in capsys.readouterr().err
    )
    assert (run["num_ok"], run["num_errors"], run["errors_by_code"]) == (7, 0, {})
    assert (Path(config.output) / "_SUCCESS").exists()
    rows = pq.read_table(Path(config.output) / "predictions").to_pylist()
    assert [row["row"] for row in rows] == list(range(7))
    assert [row["error_code"] for row in rows] == [None] * 7


def test_run_json_adds_up_the_drivers(config, monkeypatch, tmp_path):
    """It told of the last one alone."""
    known = tmp_path / "known"
    score(replace(config, output=str(known), limit=3))
    monkeypatch.setattr(tally, "SECONDS_BETWEEN_NOTES", 0.0)
    config = replace(config, skip_known=str(known), profile=True)

    class CutOffError(Exception):
        pass

    added = []

    def add(self, report, of=tally.Tally.add):
        of(self, report)
        added.append(report)
        if len(added) == 2:
            raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(tally.Tally, "add", add)
        with pytest.raises(CutOffError):
            score(config)
    cut = json.loads(Path(config.output, "run.json").read_text())
    assert (cut["status"], cut["num_known"], [one["num_images"] for one in cut["drivers"]]) == ("running", 3, [4])
    run = score(replace(config, resume=True))
    assert run == json.loads(Path(config.output, "run.json").read_text())
    assert [one["num_images"] for one in run["drivers"]] == [4, 3]
    assert [one["num_known"] for one in run["drivers"]] == [3, 0]
    assert (run["num_known"], run["num_images"]) == (3, 7)
    assert run["wall_s"] == pytest.approx(sum(one["wall_s"] for one in run["drivers"]))
    assert run["images_per_s"] == pytest.approx(7 / sum(one["scoring_s"] for one in run["drivers"]))
    assert run["profile"]["ray_data"] == ["statistics"]  # the first driver ended before there were any
    stages = {one["stage"]: one["seconds"] for one in run["profile"]["stages"]}
    for stage, seconds in stages.items():
        assert seconds == pytest.approx(sum(one["seconds_by_stage"][stage] for one in run["drivers"]), abs=1e-3)


def test_the_summary_counts_what_is_written(config):
    run = score(config)
    rows = pq.read_table(Path(config.output) / "predictions").to_pylist()
    for label in ("real", "fake"):
        assert run["num_predicted"][label] == sum(row["predicted_label"] == label for row in rows)
    expected = [0] * 20
    for row in rows:
        expected[min(19, int(row["p_fake"] * 20))] += 1
    assert run["p_fake_histogram"] == expected
    assert run["warnings"] == []


@pytest.mark.parametrize(
    ("num_ok", "num_fake", "expected"),
    [(99, 99, None), (100, 98, None), (100, 99, "99.0% of the images are called fake"), (100, 100, "100.0% of the"),
     (100, 2, None), (100, 1, "99.0% of the images are called real")],
)  # fmt: skip
def test_nearly_all_on_one_side_is_a_warning(num_ok, num_fake, expected):
    counts = {"num_ok": num_ok, "num_predicted": {"real": num_ok - num_fake, "fake": num_fake}}
    found = warnings_of(counts)
    assert [text.startswith(expected) for text in found] == ([] if expected is None else [True])


def test_an_output_that_others_changed_is_a_failure(config):
    from deepfake_ray.data.predictions import count
    from deepfake_ray.errors import JobError

    score(config)
    with pytest.raises(JobError, match=r"predictions has 7 rows instead of 8; it was changed by others"):
        count(f"{config.output}/predictions", 8)


# --- other jobs: what a finished output of theirs is compared by


def finished(output, **contents):
    for name, content in contents.items():
        files.write_json(f"{output}/{name}.json", content)
    outputs.mark_finished(str(output))


def evaluation(untrained, tmp_path, **options):
    return EvaluateConfig(data="/data", model=untrained, output=str(tmp_path / "o"), **options)


def test_a_finished_evaluation_of_something_else_is_refused(untrained, tmp_path):
    from deepfake_ray.drivers.evaluate import evaluate

    config = evaluation(untrained, tmp_path)
    run = {"model_id": bundle.load_spec(untrained).model_id, "config": config.to_json(), "status": "finished",
           "errors_by_code": {"not_found": 1}, "num_images": 7}  # fmt: skip
    finished(config.output, run=run, metrics={"roc_auc": 0.5})
    assert evaluate(replace(config, resume=True)) == {"roc_auc": 0.5}
    for change, name in (
        ({"data": "/other"}, "data"), ({"split": "all"}, "split"), ({"degrade": 5}, "degrade"),
        ({"labels": "x"}, "labels"),
        ({"compare": "/y"}, "compare"), ({"threshold": "0.3"}, "threshold"), ({"predictions": "/p"}, "predictions"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"same run: {name} was .* and is now"):
            evaluate(replace(config, resume=True, **change))
    with pytest.raises(UserError, match="same run: model was"):
        evaluate(replace(config, resume=True, model=other_model(untrained, tmp_path / "m", temperature=3.0)))


def test_a_finished_evaluation_of_predictions_is_compared_as_well(untrained, tmp_path):
    from deepfake_ray.drivers.evaluate import evaluate

    config = evaluation(untrained, tmp_path, predictions="/p")
    scoring = {"images": ["/data"], "threshold": "balanced"}
    run = {"model_id": bundle.load_spec(untrained).model_id, "config": scoring, "status": "finished", "num_images": 7,
           "errors_by_code": {"timeout": 1}, "predictions_of": "/p"}  # fmt: skip
    for kept in ({"evaluation": config.to_json()}, {}):  # an older version kept less
        shutil.rmtree(config.output, ignore_errors=True)
        finished(config.output, run=run | kept, metrics={"roc_auc": 0.5})
        assert evaluate(replace(config, resume=True)) == {"roc_auc": 0.5}
        with pytest.raises(UserError, match="predictions was '/p' and is now '/q'"):
            evaluate(replace(config, resume=True, predictions="/q"))
        with pytest.raises(UserError, match="predictions was '/p' and is now None"):
            evaluate(replace(config, resume=True, predictions=None))
    with pytest.raises(UserError, match="same run: model was"):
        evaluate(replace(config, resume=True, model=other_model(untrained, tmp_path / "m", temperature=3.0)))


def test_degraded_scores_of_other_images_are_not_gone_on_with(tmp_path):
    """Rows there count the drawn images: with others drawn, each score would be given to another image."""
    from deepfake_ray.data import manifest, tables
    from deepfake_ray.drivers.evaluate import _require_the_same_drawn

    pages = [manifest.Page(tables.manifest_rows({"uri": [f"/{i}.jpg" for i in rows]}, 2)) for rows in ((1, 2), (1, 3))]
    place = tmp_path / "degraded"
    for page, stays in ((pages[0], True), (pages[1], False)):
        files.write_json(f"{place}/run.json", {"manifest_sha256": manifest.manifest_from_pages([pages[0]]).sha256})
        _require_the_same_drawn(page, str(place))
        assert place.exists() == stays


@pytest.mark.parametrize("of_an_older_version", [False, True])
def test_a_finished_training_of_something_else_is_refused(untrained, tmp_path, of_an_older_version):
    from deepfake_ray.drivers.train import train

    config = TrainConfig(data="/data", output=str(tmp_path / "o"), image_size=32)
    chosen = config.to_json() | {"weights": "none", "global_batch_size": 128, "num_workers": 1, "learning_rate": 0.002}
    del chosen["mlflow_uri"], chosen["leave_one_source_out"]
    finished(config.output, config=chosen if of_an_older_version else chosen | resuming.asked_settings(config))
    shutil.copytree(untrained, tmp_path / "o" / "model")
    for same in ({}, {"max_failures": 1}, {"mlflow_uri": "x"}, {"verbose": True}):
        assert train(replace(config, resume=True, **same)) == bundle.load_spec(untrained)
    for change, name in (
        ({"data": "/other"}, "data"), ({"epochs": 3}, "epochs"), ({"arch": "resnet50"}, "arch"), ({"seed": 1}, "seed"),
        ({"num_workers": 2}, "num_workers"), ({"image_size": 64}, "image_size"), ({"precision": "fp32"}, "precision"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"same run: {name} was .* and is now"):
            train(replace(config, resume=True, **change))


def test_a_finished_matrix_of_something_else_is_refused(tmp_path):
    from deepfake_ray.drivers.leave_one_source_out import MATRIX, leave_one_source_out

    config = TrainConfig(data="/data", output=str(tmp_path / "o"), leave_one_source_out=True)
    finished(config.output, config=resuming.asked_settings(config))
    files.write_bytes(
        f"{config.output}/{MATRIX}", b"left_out,tested_on,roc_auc,recall_fake,num_fake\n(nothing),a,0.75,0.5,3\n"
    )
    cell = {"left_out": "(nothing)", "tested_on": "a", "roc_auc": 0.75, "recall_fake": 0.5, "num_fake": 3}
    assert leave_one_source_out(replace(config, resume=True)) == [cell]
    with pytest.raises(UserError, match="epochs was 8 and is now 3"):
        leave_one_source_out(replace(config, resume=True, epochs=3))
    # An older version kept the settings of the first of its trainings alone.
    os.rename(f"{config.output}/config.json", f"{config.output}/old.json")
    files.write_json(f"{config.output}/all/config.json", config.to_json() | {"data": "/o/all.parquet", "limit": None})
    assert leave_one_source_out(replace(config, resume=True)) == [cell]
    with pytest.raises(UserError, match="epochs was 8 and is now 3"):
        leave_one_source_out(replace(config, resume=True, epochs=3))


def test_a_finished_quantisation_of_something_else_is_refused(untrained, tmp_path):
    from deepfake_ray.drivers.quantize import quantize

    config = QuantizeConfig(data="/data", model=untrained, output=str(tmp_path / "o"))
    made_of = {"quantised_from": bundle.load_spec(untrained).model_id}
    other = other_model(untrained, tmp_path / "other", temperature=2.0)
    for provenance in (made_of, made_of | resuming.asked_settings(config)):
        shutil.rmtree(config.output, ignore_errors=True)
        other_model(untrained, tmp_path / "o" / "model", provenance=provenance)
        outputs.mark_finished(config.output)
        assert quantize(replace(config, resume=True)).provenance == provenance
        with pytest.raises(UserError, match="was made of model"):
            quantize(replace(config, resume=True, model=other))
    with pytest.raises(UserError, match="calibration_images was 256 and is now 9"):
        quantize(replace(config, resume=True, calibration_images=9))


def test_what_may_change_is_decided_for_each_setting():
    """A new setting is compared unless it is put here on purpose."""
    from deepfake_ray.config import FREE_TO_CHANGE

    assert sorted(FREE_TO_CHANGE) == [
        "allow_leaks", "checkpoint_every_steps", "git_revision", "image_timeout_s", "json", "max_error_share",
        "max_failures", "mlflow_uri", "num_workers", "output", "profile", "resume", "shared_storage", "use_gpu",
        "verbose", "versions",
    ]  # fmt: skip
