import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.architectures.build import build, torchvision_names
from compress.architectures.resize import differing_shapes, resize
from compress.architectures.spec import ModelSpec
from compress.architectures.weights import load_weights
from compress.data.load import Data
from compress.data.preprocess import Preprocess
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
    pixels = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8)
    with torch.no_grad():
        assert model(pixels).shape == (2, 3)


def test_a_small_stem_does_not_stride(digits: Data) -> None:
    small = build(torchvision_spec("resnet18", digits)).network.get_submodule("conv1")
    assert isinstance(small, nn.Conv2d)
    assert (small.kernel_size, small.stride, small.in_channels) == ((3, 3), (1, 1), 1)
    large = build(spec_64("resnet18")).network.get_submodule("conv1")
    assert isinstance(large, nn.Conv2d)
    assert (large.kernel_size, large.stride, large.in_channels) == ((7, 7), (2, 2), 1)


def test_pixels_are_normalised_inside(digits: Data) -> None:
    model = build(student_spec(digits))
    pixels = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    mean, std = digits.preprocess.mean[0], digits.preprocess.std[0]
    expected = (pixels.double() / 255 - mean) / std
    assert torch.allclose(model.normalize(pixels).double(), expected, atol=1e-5)


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
        (str(foreign), "another network's weights"),
        (str(broken), "cannot be read as weights"),
        (str(code), "cannot be read as weights"),
        ("nowhere.pth", "there is no weights file"),
        ("IMAGENET", "unknown weights 'IMAGENET'"),
    ):
        with pytest.raises(ValueError, match=".") as caught, warnings.catch_warnings():
            load_weights(network, "resnet18", name)
        assert part in str(caught.value)
