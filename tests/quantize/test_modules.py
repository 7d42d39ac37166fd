import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.quantize.modules import (
    QMAX_BIAS,
    ActivationQuantizer,
    QuantizedLayer,
    round_through,
    weight_scale,
)


def quantizer(low: float, high: float) -> ActivationQuantizer:
    module = ActivationQuantizer()
    module.set_range(low, high)
    return module


def test_rounding_equals_torchs_own_fake_quantisation() -> None:
    module = quantizer(-1.7, 4.1)
    x = torch.linspace(-3, 6, 1001)
    expected = torch.fake_quantize_per_tensor_affine(
        x, float(module.scale), int(module.zero_point), 0, 255
    )
    assert torch.allclose(module(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "zero_point"),
    [(0.0, 5.1, 0), (0.5, 5.1, 0), (-1.0, 1.0, 128), (-3.0, -1.0, 255)],
)
def test_zero_is_always_a_level(low: float, high: float, zero_point: int) -> None:
    module = quantizer(low, high)
    assert int(module.zero_point) == zero_point
    assert module(torch.zeros(1)).item() == 0.0


def test_an_empty_range_does_not_divide_by_zero() -> None:
    assert torch.isfinite(quantizer(0.0, 0.0)(torch.ones(3))).all()


def test_observing_notes_the_range_and_changes_nothing() -> None:
    module = ActivationQuantizer()
    module.observing = True
    x = torch.tensor([-2.0, 0.3, 7.0])
    assert torch.equal(module(x), x)
    module(torch.tensor([-1.0, 9.0]))
    assert (module.low.item(), module.high.item()) == (-2.0, 9.0)


def test_the_gradient_passes_inside_the_range_only() -> None:
    module = quantizer(0.0, 1.0)
    x = torch.tensor([-0.5, 0.3, 1.5], requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    y = torch.tensor([0.4], requires_grad=True)
    round_through(y).backward()
    assert y.grad is not None
    assert y.grad.item() == 1.0


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.Linear(6, 5),
    ],
)
def test_a_frozen_layer_computes_with_integers(layer: nn.Conv2d | nn.Linear) -> None:
    x = torch.randint(0, 255, (2, 4, 7, 6)).float() * 0.01
    quantized = QuantizedLayer(layer, source="input")
    training = quantized(x)
    quantized.freeze(torch.tensor(0.01))
    frozen = quantized(x)
    # Integer arithmetic, worked out separately.
    scale = weight_scale(layer.weight.detach())
    shape = (-1, *[1] * (layer.weight.ndim - 1))
    weight = torch.round(layer.weight.detach() / scale.view(shape)).double()
    bias = torch.zeros(len(scale)) if layer.bias is None else layer.bias.detach()
    bias_int = torch.round(bias / (0.01 * scale)).double()
    levels = torch.round(x / 0.01).double()
    if isinstance(layer, nn.Linear):
        sums, per_channel = F.linear(levels, weight, bias_int), scale
    else:
        sums = F.conv2d(
            levels, weight, bias_int, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        per_channel = scale.view(1, -1, 1, 1)
    assert torch.allclose(frozen.double(), sums * 0.01 * per_channel, atol=1e-5)
    assert torch.allclose(frozen, training, atol=0.01 * float(scale.max()))
    assert quantized.weight_int8.dtype == torch.int8
    assert list(quantized.parameters()) == []


def test_the_bias_of_a_dead_channel_does_not_overflow() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.bias.copy_(torch.tensor([5.0, 0.1]))
    quantized = QuantizedLayer(layer, source="input")
    quantized.freeze(torch.tensor(1e-3))
    assert quantized.bias_int32.abs().max() <= QMAX_BIAS
    assert quantized(torch.zeros(1, 3))[0].tolist() == pytest.approx([5.0, 0.1], rel=1e-3)
