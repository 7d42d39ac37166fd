import pytest
import torch
import torch.nn.functional as F

from compress.int8.fake_quantize import round_ste
from compress.int8.quantizer import ActivationQuantizer
from compress.int8.ranges import Statistics


def quantizer(low: float, high: float) -> ActivationQuantizer:
    module = ActivationQuantizer()
    module.set_range(low, high)
    return module


def test_fake_quantization_equals_torchs_own() -> None:
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


def test_observing_records_the_range_and_changes_nothing() -> None:
    module = ActivationQuantizer()
    module.mode, module.statistics = "observe", Statistics(histogram=False)
    x = torch.tensor([-2.0, 0.3, 7.0])
    assert torch.equal(module(x), x)
    module(torch.tensor([-1.0, 9.0]))
    assert (module.statistics.low, module.statistics.high) == (-2.0, 9.0)


def test_an_activation_function_is_part_of_its_quantizer() -> None:
    """HardSigmoid after a bias of 3; ReLU6."""
    x = torch.linspace(-7, 7, 1001)
    gate = ActivationQuantizer(lowest=0, highest=6, gain=1 / 6)
    gate.set_range(0.0, 5.0)  # wider than the function's values
    assert (gate(x + 3) - F.hardsigmoid(x)).abs().max() <= 0.5 / 255 + 1e-6
    relu6 = ActivationQuantizer(lowest=0, highest=6)
    relu6.set_range(-3.0, 9.0)
    assert (relu6(x) - F.relu6(x)).abs().max() <= 3 / 255 + 1e-6
    relu6.mode = "float"
    assert torch.equal(relu6(x), F.relu6(x))


@pytest.mark.parametrize("images", [1, 3])
def test_learned_scales_have_the_gradient_of_lsq(images: int) -> None:
    """Esser et al., equation 3: round(v/s) - v/s inside the range, the bound outside.

    The gradient is divided by the root of one image's values times the levels, whatever the batch.
    """
    module = quantizer(0.0, 2.55)
    module.scale.requires_grad_()
    values = torch.tensor([[0.123, 1.0, 9.0, -1.0]]).expand(images, 4)
    module(values).sum().backward()
    v = values / 0.01
    expected = images * ((torch.round(v[0, :2]) - v[0, :2]).sum() + 255 + 0)
    assert module.scale.grad is not None
    assert module.scale.grad.item() * (4 * 255) ** 0.5 == pytest.approx(float(expected), abs=0.01)


def test_a_learned_scale_cannot_exceed_the_activations_bounds() -> None:
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
def test_conversion_keeps_calibrated_scales_and_bounds_learned_ones(
    bounds: tuple[float, float], gain: float
) -> None:
    """Hardtanh(-1, 1) used to lose half its range."""
    low, high = bounds
    x = torch.linspace(2 * low - 1, 2 * high + 1, 1001)
    clipped = torch.clamp(x, low, high) * gain
    for share in (0.1, 0.5, 1.0, 2.0):  # of the bounds: images may reach less, or more
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


def test_a_learned_scale_ships_within_its_bounds() -> None:
    """Training clamps a scale to what ReLU6 allows; the file must contain the same."""
    quantizer = ActivationQuantizer(lowest=0, highest=6)
    quantizer.set_range(0, 6)
    quantizer.scale.requires_grad_()
    quantizer.scale.data.fill_(1.0)
    x = torch.linspace(-1, 300, 1000)[None]
    trained = quantizer(x).detach()
    quantizer.convert()
    assert quantizer.scale == pytest.approx(6 / 255)
    assert torch.allclose(quantizer(x), trained)
