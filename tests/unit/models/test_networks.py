import pytest
import torch
import torchvision

from deepfake_ray.errors import UserError
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models import bundle, initial_weights, networks
from deepfake_ray.models.spec import Spec

ARCHS = [
    "cnn", "resnet18", "resnet50", "efficientnet_b0", "vit_b_32", "convnext_tiny", "swin_t", "mobilenet_v3_small",
    "densenet121", "vgg11", "squeezenet1_0", "googlenet", "inception_v3", "regnet_y_400mf", "alexnet", "maxvit_t",
]  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arch_has_two_outputs_and_a_head_that_is_found(arch):
    size = networks.native_size(arch)
    network = networks._shapes_of(arch).eval()
    with torch.device("meta"):
        assert network(torch.empty(3, 3, size, size)).shape == (3, 2)
    heads = networks.head_keys(arch)
    assert heads
    assert all("fc" in k or "classifier" in k or "head" in k for k in heads)
    networks.check_image_size(arch, size)


@pytest.mark.parametrize("size", [32, 47, 64, 224])
def test_cnn_takes_any_size_from_32(size):
    assert networks.build("cnn")(torch.zeros(2, 3, size, size)).shape == (2, 2)


def test_detector_normalises_uint8():
    # A network that returns channel means shows what it is given: 255 -> (1 - mean) / std.
    class Means(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))[:, :2]

    detector = networks.Detector(Means(), Preparation(image_size=4))
    found = detector(torch.full((1, 4, 4, 3), 255, dtype=torch.uint8))
    assert found[0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224], rel=1e-5)


def test_fake_logit_is_fake_minus_real():
    assert networks.fake_logit(torch.tensor([[1.0, 3.0]])).tolist() == [2.0]


def test_unknown_arch_and_size_are_named():
    with pytest.raises(UserError, match="resnet500.*try resnet50"):
        networks.build("resnet500")
    with pytest.raises(UserError, match="vit_b_16 does not take 64 px.*try 224"):
        networks.check_image_size("vit_b_16", 64)


@pytest.mark.parametrize(
    ("arch", "side", "expected"),
    [
        ("cnn", 32, 32),
        ("cnn", 20, 32),
        ("cnn", 100, 96),
        ("cnn", 4000, 128),
        ("resnet50", 32, 32),
        ("resnet50", 500, 224),
        ("vit_b_16", 32, 224),
    ],
)
def test_image_size_follows_the_data(arch, side, expected):
    assert networks.choose_image_size(arch, side) == expected


def imagenet_like(arch):
    torch.manual_seed(1)
    return torchvision.models.get_model(arch, weights=None).state_dict()


def test_weights_with_another_head_keep_the_body_and_get_a_new_head(tmp_path):
    state = imagenet_like("resnet18")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.pth")
    loaded = initial_weights.initial_state("resnet18", str(tmp_path / "w.pth"), seed=0)
    assert torch.equal(loaded["conv1.weight"], state["conv1.weight"].half().float())
    assert loaded["fc.weight"].shape == (2, 512)
    again = initial_weights.initial_state("resnet18", str(tmp_path / "w.pth"), seed=0)
    assert torch.equal(loaded["fc.weight"], again["fc.weight"])


def test_weights_without_a_head_and_with_one_of_two_classes(tmp_path):
    state = {k: v for k, v in imagenet_like("resnet18").items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "body.pth")
    assert torch.equal(
        initial_weights.initial_state("resnet18", str(tmp_path / "body.pth"), 0)["conv1.weight"],
        state["conv1.weight"],
    )
    ours = networks.build("resnet18").state_dict()
    torch.save(ours, tmp_path / "two.pth")
    assert torch.equal(
        initial_weights.initial_state("resnet18", str(tmp_path / "two.pth"), 9)["fc.weight"], ours["fc.weight"]
    )


def test_weights_of_another_arch_or_none_at_all_are_refused(tmp_path):
    torch.save(imagenet_like("resnet18"), tmp_path / "18.pth")
    with pytest.raises(UserError, match=r"weights must be those of resnet50: .*18\.pth"):
        initial_weights.initial_state("resnet50", str(tmp_path / "18.pth"), 0)
    with pytest.raises(UserError, match="does not exist"):
        initial_weights.initial_state("resnet50", str(tmp_path / "nowhere.pth"), 0)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="cannot be loaded safely"):
        initial_weights.initial_state("resnet50", str(tmp_path / "text.pth"), 0)
    with pytest.raises(UserError, match="--weights none"):
        initial_weights.initial_state("cnn", "imagenet", 0)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be loaded safely"):
        initial_weights.initial_state("resnet18", str(tmp_path / "evil.pth"), 0)


def test_imagenet_download_reads_torchvisions_own_file(tmp_path, monkeypatch):
    # The real download code, from a URL that can be reached here: a file.
    chosen = torchvision.models.get_model_weights("resnet18").DEFAULT
    torch.save(imagenet_like("resnet18"), tmp_path / "resnet18.pth")
    url = (tmp_path / "resnet18.pth").as_uri()
    monkeypatch.setattr(chosen.value, "url", url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    # The file's name carries no hash, so torch checks none.
    loaded = initial_weights.initial_state("resnet18", "imagenet", 0)
    assert torch.equal(loaded["conv1.weight"], imagenet_like("resnet18")["conv1.weight"])


def test_unreachable_download_says_how_to_give_a_file(tmp_path, monkeypatch):
    chosen = torchvision.models.get_model_weights("resnet34").DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match=f"{chosen.url}.*--weights FILE"):
        initial_weights.initial_state("resnet34", "imagenet", 0)


def test_weights_from_a_bundle_and_not_from_one_of_another_arch(tmp_path):
    network = networks.build("cnn")
    spec = Spec(arch="cnn", preparation=Preparation(image_size=32), temperature=1.0, thresholds={})
    bundle.save(str(tmp_path / "model"), spec, {k: v.numpy() for k, v in network.state_dict().items()})
    loaded = initial_weights.initial_state("cnn", str(tmp_path / "model"), seed=5)
    assert all(torch.equal(loaded[k], v) for k, v in network.state_dict().items())
    with pytest.raises(UserError, match="is cnn, --arch is resnet18"):
        initial_weights.initial_state("resnet18", str(tmp_path / "model"), seed=5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_safetensors_weights(tmp_path, memory_format):
    from safetensors.torch import save_file

    network = networks.build("cnn").to(memory_format=memory_format)
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = initial_weights.initial_state("cnn", str(tmp_path / "w.safetensors"), seed=5)
    assert all(torch.equal(loaded[k], v) for k, v in state.items())
