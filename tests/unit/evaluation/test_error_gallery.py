"""The most confident errors, and Grad-CAM where its answer is known."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scipy.special import logit

from deepfake_ray.evaluation import error_gallery
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models import bundle, networks
from deepfake_ray.models.gradcam import GradCam
from deepfake_ray.models.scores import threshold_at
from deepfake_ray.models.spec import Spec
from deepfake_ray.schema import FAKE, REAL

LIMITS = Limits(max_bytes=10**8, max_pixels=10**8)


def saved(place, arch, size, network):
    arrays = {key: value.detach().numpy() for key, value in network.state_dict().items()}
    preparation = Preparation(image_size=size)
    bundle.save(str(place), Spec(arch=arch, preparation=preparation, temperature=1.0, thresholds={}), arrays)
    return str(place)


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    """A CNN that calls bright images fake: all weights are positive, those of the real class nothing."""
    torch.manual_seed(0)
    network = networks.build("cnn")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                module.weight.abs_()
        network.classifier[-1].weight[REAL] = 0
    return saved(tmp_path_factory.mktemp("bright"), "cnn", 64, network)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 40), (40, 0), (40, 40)])
def test_grad_cam_lies_where_the_evidence_lies(brightness, top, left):
    image = np.zeros((64, 64, 3), np.uint8)
    image[top : top + 24, left : left + 24] = 255
    heat = GradCam(brightness).heat(image, FAKE)
    assert (heat.shape, heat.dtype) == ((64, 64), np.float32)
    assert 0 <= heat.min() < heat.max() <= 1
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert top - 8 <= y < top + 32
    assert left - 8 <= x < left + 32


def test_nothing_speaks_for_real_in_that_network(brightness):
    assert GradCam(brightness).heat(np.full((64, 64, 3), 255, np.uint8), REAL) is None


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("cnn", 32),
        ("resnet50", 128),
        ("vit_b_16", 224),
        ("swin_t", 224),
        ("efficientnet_b0", 128),
        ("convnext_tiny", 128),
    ],
)
def test_grad_cam_works_for_the_families(tmp_path, arch, size):
    torch.manual_seed(0)
    network = networks.build(arch)
    torch.nn.init.normal_(next(m for m in reversed([*network.modules()]) if isinstance(m, torch.nn.Linear)).weight)
    explain = GradCam(saved(tmp_path, arch, size, network))
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    heats = [heat for verdict in (REAL, FAKE) if (heat := explain.heat(image, verdict)) is not None]
    assert heats
    for heat in heats:
        assert heat.shape == (size, size)
        assert 0 <= heat.min() < heat.max() <= 1


def test_the_worst_are_the_most_confident_errors_of_each_class():
    p_fake = [0.01, 0.45, 0.2, 0.9, 0.99, 0.55, 0.7]
    labels = ["fake", "fake", "fake", "fake", "real", "real", "real"]
    table = pa.table(
        {
            "uri": [f"/{i}" for i in range(7)],
            "source": ["a"] * 7,
            "true_label": labels,
            "p_fake": p_fake,
            "logit": logit(p_fake),
        }
    )
    assert [row["uri"] for row in error_gallery.worst(table, threshold_at(0.5, 1.0))] == [
        "/0",
        "/2",
        "/1",
        "/4",
        "/6",
        "/5",
    ]
    assert [row["uri"] for row in error_gallery.worst(table, threshold_at(0.6, 1.0))] == ["/0", "/2", "/1", "/4", "/6"]
    p_fake = np.linspace(0.6, 0.9, 50)
    many = pa.table(
        {
            "uri": ["/"] * 50,
            "source": [None] * 50,
            "true_label": ["real"] * 50,
            "p_fake": p_fake,
            "logit": logit(p_fake),
        }
    )
    assert [row["p_fake"] for row in error_gallery.worst(many, threshold_at(0.5, 1.0))] == pytest.approx(
        np.linspace(0.6, 0.9, 50)[:-9:-1]
    )


def shown(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_pictures_are_whole_and_upright(brightness, tmp_path):
    image = np.zeros((40, 64, 3), np.uint8)
    image[:, 40:] = 255
    Image.fromarray(image).save(tmp_path / "small.png")
    large = np.zeros((900, 1200, 3), np.uint8)
    large[:, 900:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(large).save(tmp_path / "large.jpg", exif=exif)
    rows = [
        {"uri": str(tmp_path / name), "source": "a", "true_label": "real", "p_fake": 0.9}
        for name in ("small.png", "large.jpg", "gone.png")
    ]
    small, turned, gone = error_gallery.pictures(rows, brightness, LIMITS)
    assert (gone.picture, gone.heat, gone.source) == (b"", b"", "a")
    picture = shown(small.picture)
    assert picture.shape == (120, 192, 3)  # three times as large, and no square as the model's
    assert picture[60, 20].max() < 20
    assert picture[60, 180].min() > 235
    heat = shown(small.heat).astype(int)
    assert heat.shape == picture.shape
    assert heat[60, 170].sum() > heat[60, 20].sum() + 150, "what is bright speaks for fake"
    picture = shown(turned.picture)
    assert picture.shape == (480, 360, 3)
    assert picture[20, 180].max() < 20
    assert picture[460, 180].min() > 235


def test_the_heat_of_a_cropped_square_is_on_that_square(brightness, tmp_path):
    spec, arrays = bundle.load(brightness)
    cropping = replace(spec, preparation=Preparation(image_size=64, resize="crop"))
    bundle.save(str(tmp_path / "model"), cropping, arrays)
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 140:160] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    row = {"uri": str(tmp_path / "a.png"), "source": None, "true_label": "real", "p_fake": 0.9}
    (one,) = error_gallery.pictures([row], str(tmp_path / "model"), LIMITS)
    assert shown(one.picture).shape == (100, 300, 3)
    assert shown(one.heat).shape == (64, 64, 3)
