import dataclasses

import torch

from compress.data.load import Data
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.layer import QMAX_WEIGHT_REDUCED, per_channel
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
