"""Evaluation on one local Ray of 2 CPUs."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import csv
from scipy.stats import binomtest
from scored import read, score
from sklearn import metrics as sk

from deepfake_ray import schema
from deepfake_ray.config import EvaluateConfig, TrainConfig
from deepfake_ray.errors import UserError

pytestmark = pytest.mark.ray


def test_evaluation_equals_scikit_learn_on_its_predictions(trained, sample_folder, tmp_path, capsys):
    from deepfake_ray.drivers.evaluate import evaluate

    output = tmp_path / "o"
    evaluate(EvaluateConfig(data=str(sample_folder), model=str(trained / "model"), output=str(output)))
    found = json.load(open(output / "metrics.json"))
    rows = read(output).to_pandas()
    y, p = (rows.true_label == "fake").astype(int), rows.p_fake.astype(float)
    assert len(rows) == 80
    shown = capsys.readouterr()
    assert f"test: ROC AUC {found['roc_auc']:.4f}" in shown.out, "results are on standard output"
    assert "report.html" in shown.out
    assert "test: ROC AUC" not in shown.err
    assert set(rows.split) == {"test"}
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, rows.logit), abs=1e-9)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(y, rows.logit), abs=1e-9)
    low, high = found["intervals"]["roc_auc"]
    assert low <= found["roc_auc"] <= high
    model = json.load(open(trained / "model" / "model.json"))
    q = 1 / (1 + np.exp(-rows.logit.astype(float) / model["temperature"]))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, q), abs=1e-9)
    assert np.abs(q - p).max() < 1e-6
    assert list(found["thresholds"]) == ["default", "balanced", "fpr_1", "fpr_5"]
    for name, at in found["thresholds"].items():
        of_bundle = model["thresholds"][name]
        assert (at["threshold"], at["threshold_logit"]) == (of_bundle["p_fake"], of_bundle["logit"])
        called = (rows.logit >= np.float32(at["threshold_logit"])).astype(int)
        assert at["accuracy"] == pytest.approx(sk.accuracy_score(y, called), abs=1e-9)
        assert at["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, called), abs=1e-9)
        if called.nunique() == 2:
            assert at["mcc"] == pytest.approx(sk.matthews_corrcoef(y, called), abs=1e-9)
        assert at["f1_fake"] == pytest.approx(sk.f1_score(y, called), abs=1e-9)
        assert at["f1_macro"] == pytest.approx(sk.f1_score(y, called, average="macro"), abs=1e-9)
        if (called == 0).any():
            assert at["precision_real"] == pytest.approx(sk.precision_score(y, called, pos_label=0), abs=1e-9)
        assert at["confusion_matrix"] == sk.confusion_matrix(y, called).tolist()
    fake = rows.logit >= np.float32(found["thresholds"]["balanced"]["threshold_logit"])
    assert (rows.predicted_label == np.where(fake, "fake", "real")).all()
    sources = {of["value"]: of for of in found["slices"] if of["by"] == "source"}
    assert set(sources) == {"nearest", "bilinear", "bicubic"}
    for source, of in sources.items():
        chosen = rows[rows.source == source]
        assert of["recall_fake"] == pytest.approx((chosen.predicted_label == "fake").mean(), abs=1e-9)
        against = rows[(rows.source == source) | (rows.true_label == "real")]  # the sample's reals have no source
        assert of["roc_auc"] == pytest.approx(sk.roc_auc_score(against.true_label == "fake", against.logit), abs=1e-9)
    tidy = pq.read_table(output / "metrics.parquet")
    assert tidy.schema.equals(schema.METRICS, check_metadata=True)
    assert {"roc_auc", "accuracy", "true_fake", "recall_fake"} <= set(tidy["metric"].to_pylist())
    for name in ("confusion_matrix", "roc", "precision_recall", "score_histogram", "reliability"):
        Image.open(output / "figures" / f"{name}.png").verify()
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # whose characters may spell anything
    assert "http" not in without_pictures.replace("http-equiv", "")
    assert (output / "classification_report.txt").read_text() in page
    assert (output / "_SUCCESS").exists()


@pytest.fixture(scope="session")
def planted(trained, sample_folder, tmp_path_factory):
    """The output of an evaluation of images with a leak, a shortcut in their files, and wrong labels in one source."""
    from deepfake_ray.drivers.evaluate import evaluate

    folder = tmp_path_factory.mktemp("planted")
    data = folder / "data" / "Test"

    def save(source, *place, quality):
        target = data.joinpath(*place)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            image.save(target, quality=quality)

    for i, path in enumerate(sorted(sample_folder.glob("Test/Real/*.jpg"))):
        save(path, "Real", f"{i}.jpg", quality=95)
        if i < 20:
            save(path, "Fake", "swapped", f"{i}.jpg", quality=75)  # a real image under a wrong label
    for i, path in enumerate(sorted(sample_folder.glob("Test/Fake/*/*.jpg"))):
        save(path, "Fake", "right", f"{i}.jpg", quality=75)
    for i, path in enumerate(sorted(sample_folder.glob("Train/Real/*.jpg"))[:10]):
        target = data / "Real" / f"leak-{i}.jpg"
        if i < 5:
            shutil.copy(path, target)
        else:
            save(path, "Real", target.name, quality=95)
    (folder / "data" / "not an image.txt").write_text("")
    output = folder / "evaluation"
    evaluate(EvaluateConfig(data=str(folder / "data"), model=str(trained / "model"), output=str(output), degrade=40))
    return output


def test_planted_faults_are_named(planted):
    found = json.load(open(planted / "metrics.json"))
    audit = found["audit"]
    assert audit["zero_pixel_auc"] > 0.95
    named = {Path(one["uri"]).name for one in audit["leaks"]["examples"] if "/Train/Real/" in one["training_uri"]}
    assert named >= {f"leak-{i}.jpg" for i in range(10)}
    assert [one["differing_bits"] for one in audit["leaks"]["examples"]].count(None) == 5
    assert audit["leaks"]["num_exact"] == 5
    sources = {of["value"]: of for of in found["slices"] if of["by"] == "source"}
    assert sources["right"]["roc_auc"] > 0.9
    assert sources["swapped"]["roc_auc"] < 0.65, "these are real images"
    assert sources["right"]["recall_fake"] > sources["swapped"]["recall_fake"] + 0.2
    said = " ".join(found["warnings"])
    assert "without a pixel" in said
    assert "were in the model's training data" in said
    page = (planted / "report.html").read_text()
    assert "leak-3.jpg" in page
    assert "under a heat map" in page
    assert 0 < page.count("data:image/jpeg") <= 32  # a picture and a heat map each


def test_degraded_scores_are_those_of_degraded_files(planted, trained, tmp_path):
    from deepfake_ray.images.corruptions import DEGRADATIONS
    from deepfake_ray.images.decode import Limits, decode

    rows = pq.read_table(planted / "degraded" / "predictions").to_pandas()
    assert len(rows) == 40 * len(DEGRADATIONS)
    assert set(rows.degradation) == set(DEGRADATIONS)
    assert set(rows.true_label.value_counts()) == {20 * len(DEGRADATIONS)}
    folder = tmp_path / "images"
    folder.mkdir()
    names = ("jpeg_30", "blur_2", "half_size")
    for i, uri in enumerate(sorted(set(rows.uri))[:10]):
        pixels = decode(Path(uri).read_bytes(), Limits(max_bytes=10**6, max_pixels=10**6)).pixels
        for name in names:
            Image.fromarray(DEGRADATIONS[name].apply(pixels)).save(folder / f"{i}-{name}.png")
    score(images=folder, model=str(trained / "model"), output=str(tmp_path / "o"))
    again = {Path(row["uri"]).stem: row["logit"] for row in read(tmp_path / "o").to_pylist()}
    for i, uri in enumerate(sorted(set(rows.uri))[:10]):
        for name in names:
            logit = rows[(rows.uri == uri) & (rows.degradation == name)].logit.item()
            assert logit == pytest.approx(again[f"{i}-{name}"], abs=1e-4)
    found = json.load(open(planted / "metrics.json"))["degradations"]
    assert [of["name"] for of in found] == ["as_it_is", *DEGRADATIONS]
    half = rows[rows.degradation == "half_size"]
    assert next(of for of in found if of["name"] == "half_size")["roc_auc"] == pytest.approx(
        sk.roc_auc_score(half.true_label == "fake", half.logit), abs=1e-9
    )


def test_the_model_card_says_what_was_measured_last(planted, trained):
    found = json.load(open(planted / "metrics.json"))
    card = (trained / "model" / "MODEL_CARD.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith(f"| {found['data']} |")]
    assert f"| {found['roc_auc']:.4f} (" in row
    assert card.count("## Evaluated on") == card.count("## Limits") == 1
    assert card.index("## Evaluated on") < card.index(row) < card.index("## Limits")


def other_evaluation(planted, place):
    """As if another model had been evaluated on the same images, in another order and at another threshold."""
    (place / "predictions").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = read(planted).to_pandas()
    rows["logit"] = (0.3 * rows.logit + random.normal(0.5, 1.0, len(rows))).astype(np.float32)
    rows = rows.iloc[random.permutation(len(rows))].reset_index(drop=True)
    rows["row"] = range(len(rows))
    table = pa.Table.from_pandas(rows, preserve_index=False).cast(schema.PREDICTIONS)
    pq.write_table(table, place / "predictions" / "part-00000.parquet")
    result = json.load(open(planted / "metrics.json"))
    result |= {"model_id": "another", "verdict_threshold": "given"}
    result["thresholds"]["given"] = result["thresholds"]["default"] | {"threshold": 0.6, "threshold_logit": 0.75}
    (place / "metrics.json").write_text(json.dumps(result))
    return rows


def figures_of(rows, threshold_logit):
    fake = rows.true_label == "fake"
    called = rows.logit >= np.float32(threshold_logit)
    return {
        "roc_auc": sk.roc_auc_score(fake, rows.logit),
        "accuracy": (called == fake).mean(),
        "balanced_accuracy": sk.balanced_accuracy_score(fake, called),
        "recall_real": (~called[~fake]).mean(),
        "recall_fake": called[fake].mean(),
    }, called == fake


def test_existing_predictions_are_evaluated_and_compared(planted, trained, tmp_path, capsys):
    from deepfake_ray.drivers.evaluate import evaluate

    theirs = other_evaluation(planted, tmp_path / "other")
    data = planted.parent / "data"
    score(images=data, model=str(trained / "model"), output=str(tmp_path / "scores"))
    rows = read(planted).to_pandas()
    table = tmp_path / "labels.csv"
    missing = {"uri": str(data / "gone.jpg"), "label": "real"}
    chosen = rows[rows.index >= 10].rename(columns={"true_label": "label"})[["uri", "label"]].to_dict("records")
    pq_table = pa.Table.from_pylist([*chosen, missing])
    csv.write_csv(pq_table, table)
    options = {"predictions": str(tmp_path / "scores"), "labels": str(table), "compare": str(tmp_path / "other")}
    found = evaluate(EvaluateConfig(output=str(tmp_path / "o"), **options))
    assert found["num_scored"] == len(rows) - 10
    assert "1 labelled images have no prediction" in " ".join(found["warnings"])
    assert found["roc_auc"] == pytest.approx(
        sk.roc_auc_score(rows.true_label[10:] == "fake", rows.logit[10:]), abs=1e-6
    )
    assert found["split"] == "all"
    written = read(tmp_path / "o")
    assert len(written) == len(rows) - 10
    assert written.schema.equals(schema.PREDICTIONS, check_metadata=True)
    other = found["comparison"]
    ours = written.to_pandas()
    theirs = theirs.set_index("uri").loc[ours.uri]
    (of_ours, right), (of_theirs, theirs_right) = (
        figures_of(ours, found["thresholds"]["balanced"]["threshold_logit"]), figures_of(theirs, 0.75)
    )  # fmt: skip
    assert (other["num_images"], other["model_id"]) == (len(rows) - 10, "another")
    assert other["ours"] == pytest.approx(of_ours, abs=1e-6)
    assert other["theirs"] == pytest.approx(of_theirs, abs=1e-6)
    for name, difference in other["difference"].items():
        assert difference["value"] == pytest.approx(of_ours[name] - of_theirs[name], abs=1e-6)
        low, high = difference["interval"] or [difference["value"]] * 2
        assert low <= difference["value"] <= high
    counts = [int((one & ~another).sum()) for one, another in ((right.values, theirs_right.values),
                                                               (theirs_right.values, right.values))]  # fmt: skip
    assert [other["only_ours_right"], other["only_theirs_right"]] == counts
    assert counts[0] != counts[1]
    assert other["mcnemar_p"] == pytest.approx(binomtest(counts[0], sum(counts)).pvalue)
    said = capsys.readouterr().out
    assert f"beside model another, on the {len(rows) - 10} images of both, each at its own threshold:" in said
    assert f"{of_ours['accuracy'] - of_theirs['accuracy']:+.4f} (" in said
    assert f"right on {counts[0]} images, only the other on {counts[1]}: McNemar" in said
    assert "Beside model" in (tmp_path / "o" / "report.html").read_text()
    table.write_text("uri,label\n/nowhere.jpg,fake\n")
    with pytest.raises(UserError, match="no uri is in both"):
        evaluate(EvaluateConfig(output=str(tmp_path / "p"), **options))
    with pytest.raises(UserError, match="has no run.json"):
        evaluate(EvaluateConfig(output=str(tmp_path / "q"), **options | {"predictions": str(tmp_path)}))


@pytest.mark.slow
def test_one_source_is_left_out_at_a_time(ray_2_cpus, sample_folder, tmp_path):
    from deepfake_ray.drivers.leave_one_source_out import leave_one_source_out

    paths = [path for path in sorted(sample_folder.rglob("*.jpg")) if "bicubic" not in path.parts]
    rows = [
        {
            "uri": str(path),
            "split": path.relative_to(sample_folder).parts[0],
            "label": path.relative_to(sample_folder).parts[1],
            "source": path.parent.name if path.parent.name != "Real" else None,
        }
        for path in paths
    ]
    table = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    config = TrainConfig(data=str(table), output=str(tmp_path / "o"), epochs=1, leave_one_source_out=True)
    cells = leave_one_source_out(config)
    sources = ["bilinear", "nearest"]
    assert [(cell["left_out"], cell["tested_on"]) for cell in cells] == [
        (left_out, source) for left_out in ("(nothing)", *sources) for source in sources
    ]
    for source in sources:
        run = tmp_path / "o" / f"without-{source}"
        counts = json.load(open(run / "audit.json"))["num_images_by_source"]
        assert counts[source]["fake"] == sum(source in path.parts and "Test" in path.parts for path in paths)
        trained_on = pq.read_table(run / "model" / "training_images.parquet")["uri"].to_pylist()
        assert len(trained_on) > 200
        assert not [uri for uri in trained_on if source in uri.split("/")]
        scored = read(run / "evaluation").to_pandas()
        for cell in cells:
            if cell["left_out"] == source:
                chosen = scored[(scored.source == cell["tested_on"]) | (scored.true_label == "real")]
                expected = sk.roc_auc_score(chosen.true_label == "fake", chosen.logit)
                assert cell["roc_auc"] == pytest.approx(expected, abs=1e-9)
                assert cell["num_fake"] == (chosen.true_label == "fake").sum()
    with open(tmp_path / "o" / "leave_one_source_out.csv") as file:
        assert len(file.readlines()) == 1 + 6
    pq.write_table(pa.Table.from_pylist([row for row in rows if row["source"] != "nearest"]), table)
    with pytest.raises(UserError, match="fakes of two sources"):
        leave_one_source_out(replace(config, output=str(tmp_path / "p")))
