import torch
from torch import Tensor

from compress.data.load import Data
from compress.int8.graph import layers_of
from compress.int8.layer import Layer
from compress.int8.layerwise import visit_layers
from tests.int8.helpers import PLAN, trained_student


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
