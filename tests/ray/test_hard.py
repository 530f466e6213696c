"""A training on hard images: what the bundle was tuned on is what scoring writes, and what training saw."""

import json
from dataclasses import dataclass
from pathlib import Path

import hard as images
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from deepfake_ray.config import ScoreConfig, TrainConfig
from deepfake_ray.data.predictions import read_predictions
from deepfake_ray.evaluation import calibration
from deepfake_ray.models import bundle

pytestmark = pytest.mark.ray


@dataclass
class Hard:
    """A finished training, and what was seen of it."""

    data: Path
    output: Path
    labels: np.ndarray
    logits: np.ndarray
    """What its temperature and thresholds were chosen on."""
    had_model_when_killed: bool


@pytest.fixture(scope="session")
def hard(ray_2_cpus, tmp_path_factory):
    """Trained on `hard.generate`; killed before its thresholds were chosen, and resumed."""
    from deepfake_ray.drivers.train import train

    folder = tmp_path_factory.mktemp("hard")
    images.generate(folder / "data")
    options = {
        "data": str(folder / "data"), "output": str(folder / "run"), "image_size": 32, "epochs": 3,
        "global_batch_size": 32, "precision": "fp32", "group_regex": images.GROUPS, "max_error_share": 0.1,
    }  # fmt: skip
    seen = {}

    def watched(labels, logits, prior=None):
        seen.update(labels=labels, logits=logits)
        return tune(labels, logits, prior)

    tune = calibration.tune
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "tune", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            train(TrainConfig(**options))
        had_model = (folder / "run" / "model" / "model.json").exists()
        patch.setattr(calibration, "tune", watched)
        train(TrainConfig(**options, resume=True))
    return Hard(folder / "data", folder / "run", **seen, had_model_when_killed=had_model)


@pytest.fixture(scope="session")
def validation(hard, tmp_path_factory):
    """The rows of scoring its validation folder with the bundle, and run.json."""
    from deepfake_ray.drivers.score import score

    output = str(tmp_path_factory.mktemp("validation") / "o")
    run = score(
        ScoreConfig(
            images=(str(hard.data / "Validation"),), model=str(hard.output / "model"), output=output, precision="fp32"
        )
    )
    return read_predictions(output).to_pandas(), run


def test_no_bundle_is_there_before_it_is_tuned(hard):
    assert not hard.had_model_when_killed
    assert not (hard.output / "checkpoints" / "draft").exists()
    assert (hard.output / "_SUCCESS").exists()


def test_scores_of_validation_are_those_that_the_thresholds_were_chosen_on(hard, validation):
    rows, run = validation
    assert (rows.status == "error").sum() == 1
    rows = rows[rows.status == "ok"]
    fake = rows.uri.str.contains("/Fake/").to_numpy()
    assert len(rows) == len(hard.logits) == 149
    for label in (0, 1):
        assert np.array_equal(np.sort(rows.logit[fake == label]), np.sort(hard.logits[hard.labels == label]))
    spec = bundle.load_spec(str(hard.output / "model"))
    assert roc_auc_score(fake, rows.logit) == pytest.approx(spec.provenance["validation"]["roc_auc"], abs=1e-12)
    assert (run["precision"], run["model_id"]) == ("fp32", spec.model_id)
    assert set(rows.model_id) == {spec.model_id}


def test_promises_hold_in_the_written_columns(hard, validation):
    rows, _ = validation
    spec = bundle.load_spec(str(hard.output / "model"))
    reals = rows[(rows.status == "ok") & rows.uri.str.contains("/Real/")]
    fakes = rows[(rows.status == "ok") & rows.uri.str.contains("/Fake/")]
    for name, limit in calibration.MAX_FPR.items():
        threshold = spec.thresholds[name]
        assert (threshold.num_real, threshold.num_fake) == (len(reals), len(fakes)) == (30, 119)
        assert (reals.logit >= np.float32(threshold.logit)).sum() <= limit * len(reals)
    assert (rows.threshold_logit == np.float32(spec.thresholds["balanced"].logit)).all()
    ok = rows[rows.status == "ok"]
    assert ((ok.logit >= ok.threshold_logit) == (ok.predicted_label == "fake")).all()


def test_training_saw_the_same_validation(hard, validation):
    """Its forward pass has other batches, and batch norms that are not folded."""
    rows, _ = validation
    spec = bundle.load_spec(str(hard.output / "model"))
    found = []
    for place in (hard.output / "checkpoints").glob("checkpoint_*/"):
        state = torch.load(place / "state.pt", weights_only=True)
        if len(state["history"]) == spec.provenance["best_epoch"] and (place / "validation.npz").exists():
            with np.load(place / "validation.npz") as file:
                found.append((file["labels"], file["logits"]))
    (best,) = found
    rows = rows[rows.status == "ok"]
    fake = rows.uri.str.contains("/Fake/").to_numpy()
    for label in (0, 1):
        assert np.sort(rows.logit[fake == label]) == pytest.approx(np.sort(best[1][best[0] == label]), abs=1e-4)


def test_p_fake_is_for_as_many_reals_as_fakes(hard):
    """One real in five: the temperature is fitted as the loss weights them."""
    model = json.loads((hard.output / "model" / "model.json").read_text())
    assert model["prior"] == {"real": 0.5, "fake": 0.5}
    counts = np.bincount(hard.labels)
    weights = 0.5 / counts[hard.labels]
    losses = [
        calibration.log_loss(hard.labels, hard.logits, model["temperature"] * by, weights) for by in (0.99, 1, 1.01)
    ]
    assert losses[1] == min(losses) or model["temperature"] == pytest.approx(0.5, rel=1e-3)
