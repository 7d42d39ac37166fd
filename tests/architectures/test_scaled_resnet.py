import pytest
import torch
from torch import nn

from compress.architectures.scaled_resnet import ScaledResNet
from compress.errors import CompressError


def test_widths_are_multiples_of_8_and_stages_halve_the_side() -> None:
    network = ScaledResNet(classes=3, channels=1, width=0.3, depths=(1, 2, 1), small_stem=True)
    convolutions = [block.get_submodule("conv1") for block in network.blocks]
    assert all(isinstance(item, nn.Conv2d) for item in convolutions)
    assert [item.out_channels for item in convolutions] == [16, 40, 40, 80]
    assert [item.stride for item in convolutions] == [(1, 1), (2, 2), (1, 1), (2, 2)]
    x = torch.zeros(2, 1, 32, 32)
    assert network.pool(network.conv1(x)).shape == (2, 16, 16, 16)
    assert network.blocks(network.pool(network.conv1(x))).shape == (2, 80, 4, 4)
    assert network(x).shape == (2, 3)


def test_a_large_stem_strides() -> None:
    network = ScaledResNet(classes=3, channels=3, small_stem=False)
    assert (network.conv1.kernel_size, network.conv1.stride) == ((7, 7), (2, 2))
    assert network.conv1(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0.0}, r"width must be in \(0, 4\], got 0.0"),
        ({"width": 4.5}, r"width must be in \(0, 4\], got 4.5"),
        ({"depths": ()}, r"depths must be 1 to 4 positive counts up to 100, got \(\)"),
        ({"depths": (1, 101)}, r"got \(1, 101\)"),
        ({"depths": (1, 1, 1, 1, 1)}, r"got \(1, 1, 1, 1, 1\)"),
    ],
)
def test_wrong_arguments_are_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        ScaledResNet(classes=3, channels=1, small_stem=True, **arguments)  # type: ignore[arg-type]
