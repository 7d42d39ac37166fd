import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.architectures.build import Classifier, build
from compress.data.dataset import Data
from compress.errors import CompressError
from compress.int8.graph import aten, layers_of
from compress.int8.tracing import trace
from tests.conftest import student_spec


class _Shared(nn.Module):
    """Calls one layer twice, on a tensor of three dimensions, and takes a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.mix(self.mix(x)).mean(1)  # type: ignore[no-any-return]


class _Sliced(nn.Module):
    """Adds in place to slices: of everything, as GhostNet does, and of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.conv(x)[:, :4]
        whole += 1
        part = whole[:, 1:]
        part += 1
        return whole.mean((2, 3))  # type: ignore[no-any-return]


class _InFloat(nn.Module):
    """Leaves mixed precision for a while, as EfficientViT's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        with torch.autocast("cpu", enabled=False):
            mean = x.float().mean((2, 3))
        return mean.to(x.dtype)


class _Standardized(nn.Module):
    """Computes its weight from a parameter, as NFNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.conv.gain = nn.Parameter(torch.full((4, 1, 1, 1), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        weight, gain = self.conv.weight, self.conv.gain
        assert isinstance(gain, Tensor)
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std() * gain
        x = functional.conv2d(x, weight, self.conv.bias)
        return x.mean((2, 3)) * weight.abs().mean() + weight.shape[0]


class _DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def classifier(network: nn.Module, data: Data) -> Classifier:
    return Classifier(build(student_spec(data)).normalize, network).eval()


def assert_same(traced: nn.Module, model: nn.Module, data: Data) -> None:
    """At two batch sizes."""
    for n in (1, 3):
        images = next(iter(data.test.batches(n))).images
        with torch.no_grad():
            assert torch.allclose(traced(images), model(images), atol=1e-5)


def test_a_traced_network_computes_the_same_at_any_batch_size(digits: Data) -> None:
    torch.manual_seed(0)
    model = classifier(_Shared(), digits)
    traced = trace(model)
    assert_same(traced, model, digits)


def test_layers_keep_their_names_and_one_that_is_called_twice_becomes_two(digits: Data) -> None:
    traced = trace(classifier(_Shared(), digits))
    layers = layers_of(traced)
    assert list(layers) == ["conv", "mix", "mix_again"]
    assert [layer.is_convolution for layer in layers.values()] == [True, False, False]
    assert layers["conv"].channels == (1, 4)
    assert layers["conv"].bias.tolist() == [0.0] * 4
    targets = {node.target for node in traced.graph.nodes}
    assert not targets & {aten.view.default, aten.clone.default, aten.linear.default}


def test_slices_of_everything_disappear(digits: Data) -> None:
    torch.manual_seed(0)
    model = classifier(_Sliced(), digits)
    traced = trace(model)
    targets = [node.target for node in traced.graph.nodes]
    assert targets.count(aten.slice_scatter.default) == 1
    assert_same(traced, model, digits)


def test_a_weight_that_is_computed_from_parameters_is_a_layer_s(digits: Data) -> None:
    torch.manual_seed(0)
    model = classifier(_Standardized(), digits)
    traced = trace(model)
    layer = layers_of(traced)["conv"]
    assert layer.weight.mean((1, 2, 3)).abs().max() < 1e-6
    assert not [node for node in traced.graph.nodes if node.target is aten.abs.default]
    assert_same(traced, model, digits)


def test_a_network_that_asks_for_float_runs_in_bf16(digits: Data) -> None:
    torch.manual_seed(0)
    model = classifier(_InFloat(), digits)
    traced = trace(model)
    images = next(iter(digits.test.batches(3))).images
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(traced(images).float(), model(images).float(), atol=0.02)


def test_a_network_that_depends_on_its_data_is_refused_by_name(digits: Data) -> None:
    with pytest.raises(CompressError, match="_DataDependent cannot be traced: "):
        trace(classifier(_DataDependent(), digits))
