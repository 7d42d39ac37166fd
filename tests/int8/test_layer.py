import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.int8.layer import QMAX_BIAS, Layer, mse_weight_scale, weight_scale


def module_for(layer: nn.Conv2d | nn.Linear) -> Layer:
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        return Layer.linear(layer.weight, bias)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return Layer.conv(layer.weight, bias, geometry)


def test_mse_scales_are_no_worse_than_the_largest_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 64)
    weight[0, 0] = 40.0  # an outlier

    def error(scale: torch.Tensor) -> torch.Tensor:
        levels = torch.clamp(torch.round(weight / scale[:, None]), -7, 7)
        return (levels * scale[:, None] - weight).pow(2).mean(1)

    best, full = mse_weight_scale(weight, 7), weight_scale(weight, 7)
    assert (error(best) <= error(full) + 1e-9).all()
    assert error(best)[1:].sum() < 0.95 * error(full)[1:].sum()


def test_mse_scales_are_the_best_of_the_documented_grid() -> None:
    """From half the largest magnitude up to all of it, in steps of 2%, for each channel."""
    torch.manual_seed(0)
    weight = torch.cat([torch.randn(4, 64), torch.full((1, 64), 0.3), torch.randn(1, 64) ** 5])
    full = weight_scale(weight, 7)
    grid = [full * percent / 100 for percent in range(50, 101, 2)]
    errors = [
        ((torch.round(weight / s[:, None]).clamp(-7, 7) * s[:, None] - weight) ** 2).mean(1)
        for s in grid
    ]
    best = torch.stack(errors).argmin(0)
    assert len(set(best.tolist())) > 2
    expected = torch.stack(grid).gather(0, best[None])[0]
    assert mse_weight_scale(weight, 7).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.Linear(6, 5),
    ],
)
def test_a_converted_layer_computes_with_integers(layer: nn.Conv2d | nn.Linear) -> None:
    x = torch.randint(0, 255, (2, 6) if isinstance(layer, nn.Linear) else (2, 4, 7, 6)).float()
    x *= 0.01
    quantized = module_for(layer)
    quantized.quantize("input")
    training = quantized(x)
    quantized.convert(torch.tensor(0.01))
    converted = quantized(x)
    # Integer arithmetic, worked out separately.
    scale = weight_scale(layer.weight.detach(), 127)
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
    assert torch.allclose(converted.double(), sums * 0.01 * per_channel, atol=1e-5)
    assert torch.allclose(converted, training, atol=0.01 * float(scale.max()))
    assert quantized.weight_int8.dtype == torch.int8
    assert not any(parameter.requires_grad for parameter in quantized.parameters())


def test_the_bias_of_a_dead_channel_does_not_overflow() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.bias.copy_(torch.tensor([5.0, 0.1]))
    quantized = module_for(layer)
    quantized.quantize("input")
    quantized.convert(torch.tensor(1e-3))
    assert quantized.bias_int32.abs().max() <= QMAX_BIAS
    assert quantized(torch.zeros(1, 3))[0].tolist() == pytest.approx([5.0, 0.1], rel=1e-3)
