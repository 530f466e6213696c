import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from deepfake_ray import schema
from deepfake_ray.errors import UserError
from deepfake_ray.evaluation import calibration
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models import bundle, networks
from deepfake_ray.models.inference import Predictor
from deepfake_ray.models.scores import Threshold, threshold_at
from deepfake_ray.models.spec import Spec

NUMBERS = {"default": 0.5, "balanced": 0.4, "fpr_1": 0.9, "fpr_5": 0.8}
THRESHOLDS = {name: threshold_at(number, 1.5) for name, number in NUMBERS.items()}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = networks.build("cnn")
    spec = Spec(
        arch="cnn", preparation=Preparation(image_size=32), temperature=1.5, thresholds=THRESHOLDS,
        provenance={"validation": {"roc_auc": 0.75}},
    )  # fmt: skip
    place = str(tmp_path / "model")
    return place, bundle.save(place, spec, {k: v.numpy() for k, v in network.state_dict().items()}), network


def test_round_trip(saved):
    place, spec, network = saved
    loaded, arrays = bundle.load(place)
    assert loaded == spec
    assert set(arrays) == set(network.state_dict())
    assert all(np.array_equal(arrays[k], v.numpy()) for k, v in network.state_dict().items())


def test_weights_in_channels_last_order_are_saved_as_they_are(tmp_path):
    network = networks.build("cnn").to(memory_format=torch.channels_last)
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    spec = Spec(arch="cnn", preparation=Preparation(image_size=32), temperature=1.0, thresholds={})
    bundle.save(str(tmp_path), spec, state)
    _, arrays = bundle.load(str(tmp_path))
    assert all(arrays[k].shape == v.shape and np.array_equal(arrays[k], v) for k, v in state.items())


def test_loaded_bundle_gives_the_networks_own_logits(saved):
    place, spec, network = saved
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        detector = networks.Detector(network, spec.preparation).eval()
        expected = networks.fake_logit(detector(torch.from_numpy(images))).numpy()
    found = Predictor(place, precision="fp32").logits(images)
    assert found == pytest.approx(expected, abs=1e-5)


def test_model_id_changes_with_whatever_changes_a_score(saved):
    _, spec, _ = saved
    others = [
        replace(spec, temperature=1.6),
        replace(spec, preparation=Preparation(image_size=64)),
        replace(spec, arch="resnet18"),
        replace(spec, sha256="0" * 64),
    ]
    assert len({spec.model_id, *(other.model_id for other in others)}) == 5
    assert replace(spec, thresholds={}).model_id == spec.model_id
    assert len(spec.model_id) == 16


def test_threshold_by_name_or_number(saved):
    assert saved[1].threshold("fpr_1").p_fake == 0.9
    assert saved[1].threshold("0.25") == Threshold(logit=float(np.float32(-1.5 * np.log(3))), p_fake=0.25)
    with pytest.raises(UserError, match="got 'fpr_2'"):
        saved[1].threshold("fpr_2")


def change_json(place, **values):
    path = f"{place}/model.json"
    content = json.load(open(path)) | values
    json.dump(content, open(path, "w"))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            lambda place: open(f"{place}/model.safetensors", "r+b").write(b"\xff" * 40),
            "was changed or cut short",
        ),
        (lambda place: change_json(place, temperature=9.0), "was changed since"),
        (lambda place: change_json(place, format_version=99), "has format 99"),
        (lambda place: change_json(place, classes=["fake", "real"]), "has the classes"),
        (lambda place: open(f"{place}/model.json", "w").write("{"), "is not JSON"),
    ],
)
def test_tampering_is_noticed(saved, tamper, message):
    place = saved[0]
    tamper(place)
    with pytest.raises(UserError, match=message):
        bundle.load(place)


def test_no_bundle(tmp_path):
    with pytest.raises(UserError, match=r"directory with model\.json.*give OUTPUT/model"):
        bundle.load_spec(str(tmp_path))


def test_card_says_what_the_model_is(saved):
    place, spec, _ = saved
    card = open(f"{place}/MODEL_CARD.md").read()
    assert spec.model_id in card
    assert "| roc_auc | 0.7500 |" in card


def test_undefined_figures_are_dashes_on_the_card(saved, tmp_path):
    """As of a validation split of which the images of one class alone could be read."""
    spec, arrays = bundle.load(saved[0])
    tuned = calibration.tune([schema.FAKE, schema.FAKE], np.float32([1, 2]))
    bundle.save(str(tmp_path), replace(spec, provenance={"validation": tuned.figures}), arrays)
    assert "| roc_auc | – |" in card_of(tmp_path)


def test_bundles_of_format_1_are_read(tmp_path):
    """As a version wrote it that had plain numbers as thresholds; its id is that of its scores then."""
    content = {
        "arch": "cnn",
        "preparation": {
            "image_size": 32, "resize": "stretch", "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "temperature": 1.5,
        "thresholds": {"default": 0.5, "balanced": 0.4, "fpr_1": 1.85e-06, "fpr_5": 1.0},
        "scales": {}, "provenance": {}, "classes": ["real", "fake"], "format_version": 1,
        "sha256": "7c25f00aa12ea0e62a337a697ed464d23ffe69899b445ed1858557cef8aec6c6", "model_id": "9f7e1f8c36fde5e0",
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(content))
    spec = bundle.load_spec(str(tmp_path))
    assert (spec.model_id, spec.precision) == ("9f7e1f8c36fde5e0", "")
    assert spec.threshold("fpr_1").p_fake == 1.85e-06
    assert spec.threshold("fpr_1").logit == pytest.approx(1.5 * np.log(1.85e-06 / (1 - 1.85e-06)), rel=1e-7)
    assert spec.threshold("default") == Threshold(logit=0.0, p_fake=0.5)
    assert np.isfinite(np.float32(spec.threshold("fpr_5").logit))


def test_model_id_is_that_of_scores_in_a_precision(saved):
    spec = saved[1]
    ids = {spec.model_id_in(precision) for precision in schema.PRECISIONS}
    assert len({*ids, spec.model_id_in("")}) == 4
    assert all(spec.made(one) for one in ids)
    assert not spec.made("0123456789abcdef")
    assert replace(spec, precision="bf16").model_id == spec.model_id_in("bf16")


@pytest.mark.parametrize("logit", [0.1, float("nan"), float("inf")])
def test_a_threshold_that_no_logit_can_have_is_refused(saved, logit):
    place = saved[0]
    change_json(place, thresholds={"default": {"logit": logit, "p_fake": 0.5, "num_real": 1, "num_fake": 1}})
    with pytest.raises(UserError, match="no finite float32"):
        bundle.load_spec(place)


def evaluation(data="/d", split="test", auc=0.9, **more):
    at = {"threshold": 1.85e-06, "balanced_accuracy": 0.8, "intervals": {"balanced_accuracy": None}}
    return {
        "data": data, "split": split, "num_scored": 1234, "roc_auc": auc, "intervals": {"roc_auc": (0.85, 0.95)},
        "verdict_threshold": "fpr_1", "thresholds": {"fpr_1": at}, "model_id": "m", **more,
    }  # fmt: skip


def card_of(place):
    return open(f"{place}/MODEL_CARD.md").read()


def test_evaluations_are_kept_and_the_card_is_written_anew(saved):
    place = saved[0]
    assert "None yet." in card_of(place)
    for one in (evaluation(), evaluation("/a | b"), evaluation(split="validation"), evaluation(auc=0.7)):
        assert bundle.add_evaluation(place, one)
    rows = [line for line in card_of(place).splitlines() if line.startswith("| /")]
    assert rows == [
        "| /a \\| b | test | 1,234 | 0.9000 (0.8500 to 0.9500) | 0.8000 | fpr_1 (1.85e-06) |",
        "| /d | test | 1,234 | 0.7000 (0.8500 to 0.9500) | 0.8000 | fpr_1 (1.85e-06) |",
        "| /d | validation | 1,234 | 0.9000 (0.8500 to 0.9500) | 0.8000 | fpr_1 (1.85e-06) |",
    ]
    assert bundle.load(place)[0] == saved[1]


def test_an_evaluation_meanwhile_is_not_lost(saved, monkeypatch):
    """Two jobs on one bundle: the other writes its own between our reading and our writing."""
    place = saved[0]
    write = bundle.files.write_json

    def with_another(uri, content):
        monkeypatch.setattr(bundle.files, "write_json", write)
        bundle.add_evaluation(place, evaluation("/other"))
        write(uri, content)

    monkeypatch.setattr(bundle.files, "write_json", with_another)
    bundle.add_evaluation(place, evaluation("/ours"))
    assert "| /other |" in card_of(place)
    assert "| /ours |" in card_of(place)


def test_what_people_wrote_into_the_card_stays(saved):
    place = saved[0]
    with open(f"{place}/MODEL_CARD.md", "r+") as file:
        text = file.read().replace("## Limits", "## Our own remarks")
        file.seek(0)
        file.write(text)
    assert not bundle.add_evaluation(place, evaluation())
    assert card_of(place) == text
    assert len(list(bundle.files.list_names(f"{place}/evaluations"))) == 1


def test_the_card_says_for_which_images_p_fake_is(tmp_path):
    spec = Spec(
        arch="cnn", preparation=Preparation(image_size=32), temperature=2.0, thresholds={},
        prior={"real": 0.2, "fake": 0.8},
    )  # fmt: skip
    bundle.save(str(tmp_path), spec, {})
    assert "0.2 are real and 0.8 fake" in card_of(tmp_path)
    assert f"- ({np.log(4):.4f})" in card_of(tmp_path)
    assert bundle.load_spec(str(tmp_path)).prior == {"real": 0.2, "fake": 0.8}
    assert replace(spec, prior={}).model_id == spec.model_id
