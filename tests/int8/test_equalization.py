import pytest
import torch
from torch import Tensor, fx, nn

from compress.architectures.build import Classifier, build
from compress.data.dataset import Data
from compress.int8.equalization import equalize
from compress.int8.graph import aten, layers_of
from compress.int8.lowering import lower
from tests.conftest import settled, student_spec


class _Pair(nn.Module):
    """Two convolutions of very uneven channels, the second one depthwise or not."""

    def __init__(self, activation: nn.Module, groups: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.first.weight.data *= torch.tensor([0.1, 1.0, 10.0, 30.0])[:, None, None, None]
        self.second, self.activation = nn.Conv2d(4, 4, 3, groups=groups), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x))).amax((2, 3))  # type: ignore[no-any-return]


def lowered_pair(activation: nn.Module, groups: int, data: Data) -> fx.GraphModule:
    network = _Pair(activation, groups)
    return lower(Classifier(build(student_spec(data)).normalize, network).eval())


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity()])
def test_both_layers_of_a_pair_get_the_same_ranges_and_outputs_stay(
    digits: Data, activation: nn.Module, groups: int
) -> None:
    lowered = lowered_pair(activation, groups, digits)
    images = next(iter(digits.test.batches(20))).images
    with torch.no_grad():
        before = lowered(images)
        assert equalize(lowered) == 1
        assert torch.allclose(lowered(images), before, rtol=1e-3, atol=1e-4)
    first, second = layers_of(lowered).values()
    outputs = first.weight.flatten(1).abs().amax(1)
    inputs = second.weight if groups > 1 else second.weight.transpose(0, 1)
    assert outputs.tolist() == pytest.approx(inputs.flatten(1).abs().amax(1).tolist(), rel=1e-3)


def test_relu6_between_two_layers_becomes_relu(digits: Data) -> None:
    lowered = lowered_pair(nn.ReLU6(), 1, digits)
    assert equalize(lowered) == 1
    targets = {node.target for node in lowered.graph.nodes}
    assert aten.relu.default in targets
    assert aten.hardtanh.default not in targets


@pytest.mark.parametrize("activation", [nn.Hardtanh(), nn.SiLU()])
def test_other_activations_separate_layers(digits: Data, activation: nn.Module) -> None:
    lowered = lowered_pair(activation, 1, digits)
    weights = [layer.weight.clone() for layer in layers_of(lowered).values()]
    assert equalize(lowered) == 0
    for layer, weight in zip(layers_of(lowered).values(), weights, strict=True):
        assert torch.equal(layer.weight, weight)


def test_a_dead_channel_is_left_alone(digits: Data) -> None:
    lowered = lowered_pair(nn.ReLU(), 1, digits)
    first, second = layers_of(lowered).values()
    first.weight.data[2] = 0
    weight = second.weight[:, 2].clone()
    equalize(lowered)
    assert torch.equal(second.weight[:, 2], weight)


def test_equalizing_a_residual_network_changes_no_result(digits: Data) -> None:
    lowered = lower(settled(student_spec(digits), digits.train))
    images = next(iter(digits.test.batches(50))).images
    with torch.no_grad():
        expected = lowered(images)
        assert equalize(lowered) == 3  # one in each of the three blocks
        assert (lowered(images) - expected).abs().max() < 1e-3 * expected.std()
