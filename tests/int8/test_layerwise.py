import dataclasses

import pytest
import torch
from torch import Tensor

from compress.data.dataset import Data
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.layer import Layer
from compress.int8.layerwise import visit_layers
from tests.int8.helpers import PLAN, coarse_plan, output_errors, trained_student


def test_layers_are_visited_in_order_with_both_networks_values(digits: Data) -> None:
    _, found = trained_student()
    model = found.quantize(PLAN)
    images = next(iter(digits.train.batches(8))).images
    visited: list[Layer] = []
    quantized_inputs: list[Tensor] = []
    float_outputs: list[Tensor] = []

    def visit(layer: Layer, quantized_input: Tensor, float_output: Tensor) -> None:
        assert layer.mode == "fake_quantize"
        visited.append(layer)
        quantized_inputs.append(quantized_input)
        float_outputs.append(float_output)

    visit_layers(model, images, visit, title="test")
    layers = list(layers_of(model).values())
    assert visited == layers
    with torch.no_grad():
        exact = found.lowered(equalized=False)
        assert torch.allclose(float_outputs[-1], exact(images), atol=1e-4)
        assert torch.equal(layers[-1](quantized_inputs[-1]), model(images))


def test_later_layers_see_what_a_visit_changed(digits: Data) -> None:
    _, found = trained_student()
    images = next(iter(digits.train.batches(8))).images

    def last_input(shift: float) -> Tensor:
        model = found.quantize(PLAN)
        inputs: list[Tensor] = []

        def visit(layer: Layer, quantized_input: Tensor, _: Tensor) -> None:
            if not inputs:
                layer.bias.add_(shift)
            inputs.append(quantized_input)

        visit_layers(model, images, visit, title="test")
        return inputs[1]

    assert (last_input(1.0) - last_input(0.0)).mean() > 0.3


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
