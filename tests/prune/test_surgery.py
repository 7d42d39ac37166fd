import pytest
import torch
from torch import nn

from compress.architectures.build import build
from compress.architectures.resize import differing_shapes, resize
from compress.architectures.spec import ModelSpec
from compress.data.load import Data
from compress.data.preprocess import Preprocess
from compress.prune.surgery import kept_channels, prune_channels
from tests.conftest import settled, student_spec, torchvision_spec

GREY_32 = Preprocess(size=32, resize=32, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "kept"),
    [(64, 0.5, 16, 32), (24, 0.35, 16, 16), (48, 0.35, 16, 32), (12, 0.5, 8, 8), (10, 0.9, 16, 10),
     (64, 0.0, 16, 64), (96, 0.35, 8, 64)],
)  # fmt: skip
def test_widths_are_rounded_to_the_nearest_multiple(
    channels: int, ratio: float, multiple: int, kept: int
) -> None:
    assert kept_channels(channels, ratio, multiple) == kept


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "vgg11_bn", "densenet121",
     "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5", "squeezenet1_1"],
)  # fmt: skip
def test_a_pruned_network_runs_and_is_rebuilt_exactly(name: str) -> None:
    spec = ModelSpec(
        architecture=name, stem="small", class_names=("a", "b", "c"), preprocess=GREY_32
    )
    model = build(spec)
    example = torch.zeros(1, 3, 32, 32)
    widths = prune_channels(model.network, example, ratio=0.5, multiple=8)
    assert widths
    assert all(width.after % 8 == 0 and width.after < width.before for width in widths)
    images = torch.randn(3, 3, 32, 32)
    pruned = model.network.eval()(images)
    assert pruned.shape == (3, 3)
    rebuilt = build(spec)
    resize(rebuilt.network, differing_shapes(model.network, build(spec).network))
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(rebuilt.network.eval()(images), pruned)


def test_dead_channels_go_first(digits: Data) -> None:
    """Every second channel inside the block is dead in all tensors it takes part in."""
    model = settled(student_spec(digits, width=0.5, depths=[1]), digits.train)
    block = model.get_submodule("network.blocks.0")
    with torch.no_grad():
        block.get_parameter("conv1.weight")[1::2] = 0
        block.get_parameter("bn1.weight")[1::2] = 0
        block.get_parameter("conv2.weight")[:, 1::2] = 0
    alive = block.get_parameter("bn1.weight")[0::2].clone()
    prune_channels(model.network, torch.zeros(1, 1, 16, 16), ratio=0.5, multiple=8)
    assert torch.equal(block.get_parameter("bn1.weight"), alive)
    assert (block.get_parameter("conv1.weight").flatten(1).norm(dim=1) > 0).all()


def test_nothing_is_pruned_from_a_network_that_is_too_narrow(digits: Data) -> None:
    model = build(student_spec(digits, width=0.125, depths=[1]))
    example = torch.zeros(1, 1, 16, 16)
    assert prune_channels(model.network, example, ratio=0.5, multiple=8) == []


def test_the_image_and_the_classes_stay(digits: Data) -> None:
    network = build(torchvision_spec("resnet18", digits)).network
    prune_channels(network, torch.zeros(1, 1, 16, 16), ratio=0.75, multiple=16)
    first, last = network.get_submodule("conv1"), network.get_submodule("fc")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Linear)
    assert (first.in_channels, last.out_features) == (1, 10)
    assert (first.out_channels, last.in_features) == (16, 128)
