import dataclasses

import pytest
import torch

import compress.int8.adaround
from compress.data.dataset import Data
from compress.int8.adaround import _learn_up, _undecided
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.layer import QMAX_WEIGHT_REDUCED, Layer, per_channel
from tests.int8.helpers import coarse_plan, output_errors, trained_student


def test_learned_roundings_come_closer_to_float_and_are_up_or_down(digits: Data) -> None:
    model, found = trained_student()
    plan = coarse_plan(found)
    nearest = found.quantize(plan)
    learned = found.quantize(dataclasses.replace(plan, adaround=True))
    flipped = 0
    for name, layer in layers_of(learned).items():
        scale = per_channel(layer.weight_scale, layer.weight)
        before = (layers_of(nearest)[name].weight / scale).detach()
        after = (layer.weight / scale).detach()
        assert torch.allclose(after, after.round(), atol=1e-3), name
        assert ((after.round() - before).abs() <= 1.001).all(), name
        assert after.abs().max() <= QMAX_WEIGHT_REDUCED + 1e-3
        flipped += int((after.round() != before.round()).sum())
    total = sum(layer.weight.numel() for layer in layers_of(learned).values())
    assert 0.01 * total < flipped < 0.5 * total
    before = output_errors(convert(nearest), model, digits).pow(2).mean()
    after = output_errors(convert(learned), model, digits).pow(2).mean()
    assert after < 0.8 * before


def test_the_regularization_decides_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = Layer.linear(torch.randn(16, 24), None)
    layer.quantize("input")
    inputs = torch.randn(256, 24)
    with torch.no_grad():
        outputs = layer.operation(inputs, layer.weight, layer.bias)

        def undecided() -> float:
            up = _learn_up(layer, inputs, outputs)
            return float(((up > 0.05) & (up < 0.95)).float().mean())

        regularized = undecided()
        monkeypatch.setattr(compress.int8.adaround, "REGULARIZATION", 0.0)
        assert regularized < 0.7 * undecided()


@pytest.mark.parametrize(("progress", "exponent"), [(0.2, 20.0), (0.6, 11.0), (1.0, 2.0)])
def test_the_regularization_sharpens_linearly(progress: float, exponent: float) -> None:
    up = torch.tensor([0.0, 0.5, 0.8, 1.0])
    expected = (0 + 1 + (1 - 0.6**exponent) + 0) / 4
    assert float(_undecided(up, progress)) == pytest.approx(expected, abs=1e-6)
