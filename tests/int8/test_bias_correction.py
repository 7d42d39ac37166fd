import dataclasses

import pytest
import torch

from compress.data.load import Data
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from tests.int8.helpers import coarse_plan, output_errors, trained_student


def test_corrected_biases_restore_the_mean_outputs(digits: Data) -> None:
    model, found = trained_student()
    plan = coarse_plan(found)
    corrected = dataclasses.replace(plan, bias_correction=True)
    before = output_errors(convert(found.quantize(plan)), model, digits).mean(0).abs().mean()
    after = output_errors(convert(found.quantize(corrected)), model, digits).mean(0).abs().mean()
    assert after < 0.5 * before


def test_only_biases_of_int8_layers_change() -> None:
    _, found = trained_student()
    plan = coarse_plan(found)
    names = list(layers_of(found.lowered(equalized=False)))
    layout = dataclasses.replace(plan.layout, float_layers=(names[1],))
    plan = dataclasses.replace(plan, layout=layout)
    before = layers_of(found.quantize(plan))
    after = layers_of(found.quantize(dataclasses.replace(plan, bias_correction=True)))
    changed = [name for name in names if not torch.equal(before[name].bias, after[name].bias)]
    assert changed == [name for name in names if name != names[1]]
    for name in names:
        assert torch.equal(before[name].weight, after[name].weight)


def test_the_first_layers_mean_output_is_the_float_networks() -> None:
    """Nothing before it adds an error, so its own is corrected exactly."""
    _, found = trained_student()
    plan = dataclasses.replace(coarse_plan(found), bias_correction=True)
    name = next(iter(layers_of(found.lowered(equalized=False))))
    quantized, exact = found.quantize(plan), found.lowered(equalized=False)
    outputs = []
    images = found._layerwise_images()
    with torch.no_grad():
        for model in (quantized, exact):
            x = model.get_submodule("normalize")(images)
            outputs.append(layers_of(model)[name](x).mean((0, 2, 3)))
    assert outputs[0].tolist() == pytest.approx(outputs[1].tolist(), abs=1e-4)
