import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.int8.fake_quantize import round_ste
from compress.int8.layer import QMAX_BIAS, Layer, mse_weight_scale, weight_scale
from compress.int8.quantizer import ActivationQuantizer
from compress.int8.ranges import Statistics


def quantizer(low: float, high: float) -> ActivationQuantizer:
    module = ActivationQuantizer()
    module.set_range(low, high)
    return module


def module_for(layer: nn.Conv2d | nn.Linear) -> Layer:
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        return Layer.linear(layer.weight, bias)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return Layer.conv(layer.weight, bias, geometry)


def test_rounding_equals_torchs_own_fake_quantization() -> None:
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
    module.mode, module.statistics = "observe", Statistics(histogram=False)
    x = torch.tensor([-2.0, 0.3, 7.0])
    assert torch.equal(module(x), x)
    module(torch.tensor([-1.0, 9.0]))
    assert (module.statistics.low, module.statistics.high) == (-2.0, 9.0)


def test_an_activation_function_is_part_of_its_quantizer() -> None:
    """HardSigmoid after a bias of 3; Relu6."""
    x = torch.linspace(-7, 7, 1001)
    gate = ActivationQuantizer(lowest=0, highest=6, gain=1 / 6)
    gate.set_range(0.0, 5.0)  # wider than the function's values
    assert (gate(x + 3) - F.hardsigmoid(x)).abs().max() <= 0.5 / 255 + 1e-6
    relu6 = ActivationQuantizer(lowest=0, highest=6)
    relu6.set_range(-3.0, 9.0)
    assert (relu6(x) - F.relu6(x)).abs().max() <= 3 / 255 + 1e-6
    relu6.mode = "float"
    assert torch.equal(relu6(x), F.relu6(x))


def test_learned_scales_have_the_gradient_of_lsq() -> None:
    """Esser et al., equation 3: round(v/s) - v/s inside the range, the bound outside."""
    module = quantizer(0.0, 2.55)
    module.scale.requires_grad_()
    values = torch.tensor([[0.123, 1.0, 9.0, -1.0]])
    module(values).sum().backward()
    v = values / 0.01
    expected = (torch.round(v[0, :2]) - v[0, :2]).sum() + 255 + 0
    assert module.scale.grad is not None
    assert module.scale.grad.item() * (4 * 255) ** 0.5 == pytest.approx(float(expected), abs=0.01)


def test_a_learned_scale_cannot_pass_the_activations_bound() -> None:
    module = ActivationQuantizer(lowest=0, highest=6)
    module.set_range(0.0, 6.0)
    module.scale.requires_grad_()
    module.scale.data.fill_(1.0)
    assert module(torch.tensor([[100.0]])).item() == pytest.approx(6.0, abs=1e-5)


@pytest.mark.parametrize("gain", [1 / 6, 1.0, 3.0])
@pytest.mark.parametrize(
    "bounds",
    [(-1, 1), (-2, 0.5), (-0.5, 2), (0, 6), (0, 1), (-1, 0), (-6, 0), (-1e-4, 6), (-6, 1e-4)],
)
def test_converting_keeps_what_was_calibrated_and_bounds_what_was_learned(
    bounds: tuple[float, float], gain: float
) -> None:
    """Hardtanh(-1, 1) had half its range after it."""
    low, high = bounds
    x = torch.linspace(2 * low - 1, 2 * high + 1, 1001)
    clipped = torch.clamp(x, low, high) * gain
    for share in (0.1, 0.5, 1.0, 2.0):  # of the bounds; images may reach less, or more
        for ends in ((share * low, share * high), (low, share * high), (share * low, high)):
            module = ActivationQuantizer(lowest=low, highest=high, gain=gain)
            module.set_range(ends[0] * gain, ends[1] * gain)
            before, scale = module(x), module.scale.clone()
            module.convert()
            assert torch.allclose(module.scale, scale, rtol=1e-6)
            assert torch.allclose(module(x), before, atol=1e-5)
            if share >= 1:
                assert (before - clipped).abs().max() <= 0.51 * scale
            module.scale.data *= 5
            module.convert()
            half = 0.51 * float(module.scale) * (low < 0 < high) + 1e-5
            assert low * gain - half <= module(x).min()
            assert module(x).max() <= high * gain + half


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


def test_the_gradient_passes_inside_the_range_only() -> None:
    module = quantizer(0.0, 1.0)
    x = torch.tensor([-0.5, 0.3, 1.5], requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    y = torch.tensor([0.4], requires_grad=True)
    round_ste(y).backward()
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
