import pytest
import torch
from torch import nn
from torchvision.models import regnet_y_400mf as torchvision_regnet

from compress.architectures.build import build
from compress.architectures.sources import torchvision_names
from compress.architectures.spec import ModelSpec
from compress.data.dataset import Data
from compress.data.preprocess import Preprocess
from compress.errors import CompressError
from tests.architectures.helpers import spec_32
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
        ("scaled_resnet", {"widht": 1}, "does not accept {'widht': 1}; its arguments"),
        ("scaled_resnet", {"width": 9}, "width must be in (0, 4], got 9"),
        ("scaled_resnet", {"depths": [0]}, "depths must be 1 to 4 positive counts"),
        ("inception_v3", {}, "inception_v3 does not accept 16 px images"),
    ],
)
def test_what_cannot_be_built_is_explained(
    digits: Data, architecture: str, arguments: dict[str, object], part: str
) -> None:
    spec = torchvision_spec(architecture, digits, **arguments)
    with pytest.raises(ValueError, match=".") as caught:
        build(spec)
    assert part in str(caught.value)


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


def test_a_network_that_the_meta_device_cannot_build_takes_arguments_too(digits: Data) -> None:
    """RegNet's constructor reads tensors, so it is built on the CPU, within the same limits."""
    spec = torchvision_spec("regnet_y_400mf", digits, stem_width=16)
    with pytest.raises(NotImplementedError), torch.device("meta"):
        torchvision_regnet(stem_width=16)
    stem = build(spec).network.get_submodule("stem.0")
    assert isinstance(stem, nn.Conv2d)
    assert stem.out_channels == 16
    with pytest.raises(CompressError, match="more than 1,000 parameters"):
        build(spec, most=1000)
