import json

import numpy as np
import pytest
import torch

from deepfake_ray import bundle, models
from deepfake_ray.errors import UserError
from deepfake_ray.inference import Predictor
from deepfake_ray.preparation import Preparation

THRESHOLDS = {"default": 0.5, "balanced": 0.4, "fpr_1": 0.9, "fpr_5": 0.8}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = models.build("cnn")
    spec = bundle.Spec(
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
    network = models.build("cnn").to(memory_format=torch.channels_last)
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    spec = bundle.Spec(arch="cnn", preparation=Preparation(image_size=32), temperature=1.0, thresholds={})
    bundle.save(str(tmp_path), spec, state)
    _, arrays = bundle.load(str(tmp_path))
    assert all(arrays[k].shape == v.shape and np.array_equal(arrays[k], v) for k, v in state.items())


def test_loaded_bundle_gives_the_networks_own_logits(saved):
    place, spec, network = saved
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        detector = models.Detector(network, spec.preparation).eval()
        expected = models.fake_logit(detector(torch.from_numpy(images))).numpy()
    found = Predictor(place, precision="fp32").logits(images)
    assert found == pytest.approx(expected, abs=1e-5)


def test_model_id_changes_with_whatever_changes_a_score(saved):
    from dataclasses import replace

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
    assert saved[1].threshold("fpr_1") == 0.9
    assert saved[1].threshold("0.25") == 0.25


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
