import dataclasses
import sys
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from compress.architectures.build import build
from compress.architectures.resize import differing_shapes, resize
from compress.architectures.sources import torchvision_names
from compress.architectures.spec import ModelSpec
from compress.architectures.weights import load_weights
from compress.cli.main import main
from compress.data.load import Data
from compress.data.preprocess import Preprocess
from compress.trust import _TRUSTED
from tests.conftest import student_spec, torchvision_spec

GREY_64 = Preprocess(size=64, resize=64, channels=1, mean=(0.5,), std=(0.25,))
NEEDS_OTHER_SIZE = {"inception_v3": 128, "maxvit_t": 224}
TOO_LARGE_TO_BUILD_OFTEN = ("vit_h_14", "regnet_y_128gf")


def spec_64(name: str) -> ModelSpec:
    size = NEEDS_OTHER_SIZE.get(name, 64)
    preprocess = Preprocess(size=size, resize=size, channels=1, mean=(0.5,), std=(0.25,))
    return ModelSpec(
        architecture=name,
        stem="large",
        class_names=("a", "b", "c"),
        preprocess=preprocess,
    )


SMALLEST_OF_EACH_FAMILY = (
    "resnet18", "resnext50_32x4d", "vgg11_bn", "densenet121", "googlenet", "inception_v3",
    "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
    "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "alexnet",
)  # fmt: skip


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_torchvision_models_fit_classes_and_channels(name: str) -> None:
    _check_forward(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in torchvision_names()
        if name not in SMALLEST_OF_EACH_FAMILY + TOO_LARGE_TO_BUILD_OFTEN
    ],
)
def test_every_other_torchvision_model_does_too(name: str) -> None:
    _check_forward(name)


def _check_forward(name: str) -> None:
    spec = spec_64(name)
    side = spec.preprocess.size
    model = build(spec).eval()
    images = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8)
    with torch.no_grad():
        assert model(images).shape == (2, 3)


def test_a_small_stem_does_not_stride(digits: Data) -> None:
    small = build(torchvision_spec("resnet18", digits)).network.get_submodule("conv1")
    assert isinstance(small, nn.Conv2d)
    assert (small.kernel_size, small.stride, small.in_channels) == ((3, 3), (1, 1), 1)
    large = build(spec_64("resnet18")).network.get_submodule("conv1")
    assert isinstance(large, nn.Conv2d)
    assert (large.kernel_size, large.stride, large.in_channels) == ((7, 7), (2, 2), 1)


def test_pixels_are_normalized_inside(digits: Data) -> None:
    model = build(student_spec(digits))
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    mean, std = digits.preprocess.mean[0], digits.preprocess.std[0]
    expected = (images.double() / 255 - mean) / std
    assert torch.allclose(model.normalize(images).double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "arguments", "part"),
    [
        ("resnet81", {}, "unknown architecture 'resnet81'; did you mean resnet18"),
        ("scaled_resnet", {"widht": 1}, "does not take {'widht': 1}; its arguments"),
        ("scaled_resnet", {"width": 9}, "width must be in (0, 4], got 9"),
        ("scaled_resnet", {"depths": [0]}, "depths must be 1 to 4 positive counts"),
        ("inception_v3", {}, "inception_v3 cannot take 16 px images"),
    ],
)
def test_what_cannot_be_built_is_explained(
    digits: Data, architecture: str, arguments: dict[str, object], part: str
) -> None:
    spec = torchvision_spec(architecture, digits, **arguments)
    with pytest.raises(ValueError, match=".") as caught:
        build(spec)
    assert part in str(caught.value)


def test_a_resized_network_takes_the_pruned_tensors(digits: Data) -> None:
    wide = build(student_spec(digits, width=0.5)).network
    narrow = build(student_spec(digits, width=0.25)).network
    resize(wide, differing_shapes(narrow, wide))
    wide.load_state_dict(narrow.state_dict(), strict=True)
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(wide.eval()(x), narrow.eval()(x))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_come_from_a_file(digits: Data, tmp_path: Path, suffix: str) -> None:
    spec = student_spec(digits)
    source, target = build(spec).network, build(spec).network
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    load_weights(target, spec.architecture, str(path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_a_classifier_of_other_size_is_left_out(digits: Data, tmp_path: Path) -> None:
    source = build(student_spec(digits)).network
    three = ModelSpec(
        architecture="scaled_resnet",
        arguments=student_spec(digits).arguments,
        stem="small",
        class_names=("a", "b", "c"),
        preprocess=digits.preprocess,
    )
    target = build(three).network
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    left_out = load_weights(target, "scaled_resnet", str(path))
    assert left_out == [
        "fc.bias (10, the network has 3)",
        "fc.weight (10x64, the network has 3x64)",
    ]
    assert torch.equal(target.get_parameter("conv1.weight"), source.get_parameter("conv1.weight"))
    assert target.get_parameter("fc.weight").shape == (3, 64)


def test_foreign_or_broken_weights_are_refused(digits: Data, tmp_path: Path) -> None:
    network = build(student_spec(digits)).network
    foreign, broken, code = (tmp_path / f"{name}.pth" for name in ("foreign", "broken", "code"))
    torch.save({"layer.weight": torch.zeros(3)}, foreign)
    broken.write_bytes(b"no weights")
    torch.save(nn.Linear(2, 2), code)  # a pickled module could run anything
    for name, part in (
        (str(foreign), "has the weights of another network: missing "),
        (str(broken), "cannot be read as weights"),
        (str(code), "cannot be read as weights"),
        ("nowhere.pth", "there is no weights file"),
        ("IMAGENET", "unknown weights 'IMAGENET'"),
    ):
        with pytest.raises(ValueError, match=".") as caught, warnings.catch_warnings():
            load_weights(network, "resnet18", name)
        assert part in str(caught.value)


def spec_32(name: str, **changes: object) -> ModelSpec:
    preprocess = Preprocess(size=32, resize=32, channels=1, mean=(0.5,), std=(0.25,))
    spec = ModelSpec(
        architecture=name, stem="small", class_names=("a", "b", "c"), preprocess=preprocess
    )
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def test_the_tutorials_networks_have_their_layers() -> None:
    shapes = {
        name: [tuple(parameter.shape) for parameter in build(spec_32(name)).parameters()][::2]
        for name in ("simple_cnn", "complex_cnn")
    }
    assert shapes["simple_cnn"] == [(64, 1, 3, 3), (64, 64, 3, 3), (256, 4096), (3, 256)]
    assert [shape[0] for shape in shapes["complex_cnn"]] == [64, 64, 128, 256, 512, 3]
    with pytest.raises(ValueError, match="with 2 convolutions, each halving the side"):
        tiny = dataclasses.replace(GREY_64, size=2, resize=2)
        build(spec_32("simple_cnn", preprocess=tiny))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0"])
def test_relu_takes_the_place_of_smooth_activations(name: str) -> None:
    own, relu = (
        {type(module).__name__ for module in build(spec_32(name, activation=kind)).modules()}
        for kind in ("own", "relu")
    )
    assert own & {"Hardswish", "SiLU"}
    assert not relu & {"Hardswish", "SiLU"}
    assert "ReLU" in relu
    trained = build(spec_32(name, activation="relu")).train()
    trained(torch.zeros(2, 1, 32, 32)).sum().backward()  # torchvision drops out in place


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:mobilenetv3_small_050"])
def test_timms_models_fit_classes_and_channels(name: str) -> None:
    spec = spec_32(name)
    assert build(spec)(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ValueError, match="timm has no model 'resnet10'; did you mean"):
        build(spec_32("timm:resnet10"))
    with pytest.raises(ValueError, match="weights must be 'pretrained' or a file, got 'best'"):
        load_weights(build(spec).network, name, "best")


OWN_CODE = """
from torch import nn


def tiny(num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def nothing(num_classes):
    return None


def seven(num_classes):
    return tiny(7)


def dense(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, num_classes))


def broken(num_classes):
    raise RuntimeError("boom")
"""


def test_code_of_ones_own_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_networks.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(ValueError, match="imported only with --trust"):
        build(spec_32("our_networks:tiny"))
    card = tmp_path / "card.toml"
    card.write_text(
        '[teacher]\narchitecture = "our_networks:tiny"\narguments = { width = 32 }\n'
        '[student]\narchitecture = "our_networks:tiny"\n'
    )
    command = ["run", "card.toml", "--data", "digits", "--pipeline", "smoke", "--until", "distill"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert "is external code" in refused.output
    trusted = CliRunner().invoke(main, [*command, "--trust"])
    assert trusted.exit_code == 0, trusted.output
    later = ["prune", "--latency-ratio", "1", "--macs-ratio", "1"]
    assert "only with --trust" in CliRunner().invoke(main, later).output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:tiny", "cannot import the network 'no_such_module:tiny'"),
        ("json:tiny", "cannot import the network 'json:tiny'"),
        ("json:dumps", r"does not take the arguments it is called with \(num_classes\)"),
    ],
)
def test_wrong_code_is_explained(name: str, message: str) -> None:
    token = _TRUSTED.set(True)
    try:
        with pytest.raises(ValueError, match=message):
            build(spec_32(name))
    finally:
        _TRUSTED.reset(token)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "our_own:seven",
            r"returns a Tensor of shape \(1, 7\) .* must return a tensor of shape \(1, 3\)",
        ),
        (
            "our_own:broken",
            "'our_own:broken' cannot be built, RuntimeError: boom; `compress --debug",
        ),
        ("our_own:nothing", "must return a torch.nn.Module"),
        ("our_typo:tiny", "'our_typo:tiny' cannot be built, SyntaxError"),
    ],
)
def test_faults_in_code_of_ones_own_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "our_own.py").write_text(OWN_CODE.replace("Conv2d(3,", "Conv2d(1,"))
    (tmp_path / "our_typo.py").write_text("def tiny(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    token = _TRUSTED.set(True)
    try:
        with pytest.raises(ValueError, match=message):
            build(spec_32(name))
        assert build(spec_32("our_own:dense"))(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    finally:
        _TRUSTED.reset(token)
        for module in ("our_own", "our_typo"):
            sys.modules.pop(module, None)


def test_numpy_archives_are_refused_with_the_remedy(digits: Data) -> None:
    model = build(torchvision_spec("resnet18", digits))
    with pytest.raises(ValueError, match=r"^vit\.npz is a NumPy archive.*timm\.create_model.*pth"):
        load_weights(model.network, "timm:vit_tiny_patch16_224", "vit.npz")
