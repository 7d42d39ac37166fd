"""Runs the float and the quantized network side by side, layer by layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.int8.fake_quantize import Mode
from compress.int8.graph import layers_of, module_of
from compress.int8.layer import Layer
from compress.int8.quantizer import ActivationQuantizer
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
            module = module_of(model, node)
            _set_mode(module, "float")
            float_values[node] = _compute(interpreter, node, float_values)
            _set_mode(module, "fake_quantize")
            if isinstance(module, Layer):
                next(progress)
                if module.is_int8:
                    visit(module, quantized_values[node.args[0]], float_values[node])
            quantized_values[node] = _compute(interpreter, node, quantized_values)
        for source in node.all_input_nodes:
            unread[source] -= 1
            if not unread[source]:
                del float_values[source], quantized_values[source]


def _set_mode(module: nn.Module | None, mode: Mode) -> None:
    if isinstance(module, ActivationQuantizer | Layer):
        module.mode = mode


def _compute(interpreter: fx.Interpreter, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return getattr(interpreter, node.op)(node.target, args, kwargs)
