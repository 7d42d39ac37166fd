"""Runs the float and the quantized network side by side, layer by layer; corrects biases."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from compress.int8.graph import layer_of, layers_of, set_mode
from compress.int8.layer import Layer
from compress.log import track

Visit = Callable[[Layer, Tensor, Tensor], None]
"""Called with a layer, its input in the quantized network, and its output in the float one."""


@torch.no_grad()
def visit_layers(model: fx.GraphModule, images: Tensor, visit: Visit, *, title: str) -> None:
    """Calls `visit` to change each int8 layer, in execution order.

    A layer is visited before its own quantized output is computed, so that later layers see the
    effect of the change.

    Args:
        model: fake-quantized, calibrated.
        images: uint8 `[N, C, H, W]`.
        visit: changes one layer in place.
        title: title of the progress bar.
    """
    float_values: dict[fx.Node, Any] = {}
    quantized_values: dict[fx.Node, Any] = {}
    unread = {node: len(node.users) for node in model.graph.nodes}
    interpreter = fx.Interpreter(model)
    layers = layers_of(model)
    progress = iter(track(layers, title, total=len(layers)))
    for node in model.graph.nodes:
        if node.op == "placeholder":
            float_values[node] = quantized_values[node] = images
        elif node.op != "output":
            set_mode(model, "float")
            float_values[node] = _compute(interpreter, node, float_values)
            set_mode(model, "fake_quantize")
            if (layer := layer_of(model, node)) is not None:
                next(progress)
                if layer.is_int8:
                    visit(layer, quantized_values[node.args[0]], float_values[node])
            quantized_values[node] = _compute(interpreter, node, quantized_values)
        for source in node.all_input_nodes:
            unread[source] -= 1
            if not unread[source]:
                del float_values[source], quantized_values[source]


def _compute(interpreter: fx.Interpreter, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return getattr(interpreter, node.op)(node.target, args, kwargs)


def correct_biases(model: fx.GraphModule, images: Tensor) -> None:
    """Shifts each bias so that the layer's mean output matches the float network's, in place.

    Bias correction (Nagel et al., arXiv 1906.04721, section 4.2), on calibration images. A layer's
    input contains the errors of the layers before it, which are corrected already.
    """
    visit_layers(model, images, _correct, title="bias correction")


def _correct(layer: Layer, quantized_input: Tensor, float_output: Tensor) -> None:
    error = float_output - layer(quantized_input)
    dims = (0, 2, 3) if layer.is_convolution else (0,)
    layer.bias.add_(error.mean(dims))
