"""Repairs of a quantized network without labels and without training it as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from compress.int8.common import Mode
from compress.int8.graph import aten, layer_of, module_of, only_reader
from compress.int8.layer import Layer, per_channel
from compress.int8.modules import ActivationQuantizer
from compress.int8.placement import layers_of
from compress.log import track

MODES: tuple[Mode, Mode] = ("float", "round")
EQUALIZE_ROUNDS = 10
ADAROUND_STEPS = 400
ADAROUND_BATCH = 32
ADAROUND_LR = 1e-2
ADAROUND_REGULARIZATION = 0.01
STRETCH = (-0.1, 1.1)
"""Ends of the stretched sigmoid, which reaches 0 and 1 (AdaRound, equation 23)."""
WARMUP = 0.2
"""Share of the steps before roundings are pushed to a side."""
SHARPNESS = (20.0, 2.0)
"""Exponent of that push, first and last."""


@torch.no_grad()
def equalize(prepared: fx.GraphModule) -> int:
    """Balances channel ranges between a layer and the next, in place.

    Cross-layer equalization (Nagel et al., arXiv 1906.04721, equation 11): channel i of the first
    layer is divided by `s_i = sqrt(r1_i / r2_i)` and the second layer's inputs multiplied by it,
    which changes nothing for Relu. Relu6 between them becomes Relu, as in the paper.

    Returns:
        The number of pairs.
    """
    pairs = []
    for node in prepared.graph.nodes:
        first, reader = layer_of(prepared, node), only_reader(node)
        if first is None or reader is None:
            continue
        is_relu6 = reader.target is aten.hardtanh.default and reader.args[1:] == (0.0, 6.0)
        if reader.target is aten.relu.default or is_relu6:
            activation, reader = reader, only_reader(reader)
            if is_relu6 and layer_of(prepared, reader) is not None:
                activation.target, activation.args = aten.relu.default, activation.args[:1]
        second = layer_of(prepared, reader)
        if second is not None and second.is_convolution and first.is_convolution:
            depthwise = second.groups == len(first.weight)
            if second.groups == 1 or depthwise:
                pairs.append((first, second, depthwise))
    for _ in range(EQUALIZE_ROUNDS):
        for first, second, depthwise in pairs:
            _balance(first, second, depthwise=depthwise)
    prepared.recompile()
    return len(pairs)


def _balance(first: Layer, second: Layer, *, depthwise: bool) -> None:
    outputs = first.weight.flatten(1).abs().amax(1)
    inputs = (second.weight if depthwise else second.weight.transpose(0, 1)).flatten(1)
    ratio = outputs / inputs.abs().amax(1)
    factor = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0).sqrt()
    first.weight.div_(per_channel(factor, first.weight))
    first.bias.div_(factor)
    shape = (-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)
    second.weight.mul_(factor.view(shape))


@torch.no_grad()
def correct_biases(placed: fx.GraphModule, images: Tensor) -> None:
    """Moves each bias so that the layer's mean output is the float network's, in place.

    Bias correction (arXiv 1906.04721, section 4.2) on images: a layer sees the errors of those
    before it, which were corrected already.

    Args:
        placed: calibrated.
        images: uint8 `[N, C, H, W]`.
    """

    def correct(layer: Layer, quantized_input: Tensor, float_output: Tensor) -> None:
        error = float_output - layer(quantized_input)
        dims = (0, 2, 3) if layer.is_convolution else (0,)
        layer.bias.add_(error.mean(dims))

    _walk(placed, images, correct, title="correcting biases")


@torch.no_grad()
def learn_rounding(placed: fx.GraphModule, images: Tensor) -> None:
    """Chooses for each weight whether to round up or down, in place.

    AdaRound (Nagel et al., arXiv 2004.10568): layer after layer, the roundings that reproduce the
    float network's output from the quantized network's input.

    Args:
        placed: calibrated.
        images: uint8 `[N, C, H, W]`.
    """
    _walk(placed, images, _learn_rounding, title="learning to round")


def _learn_rounding(layer: Layer, quantized_input: Tensor, float_output: Tensor) -> None:
    scale, bias = per_channel(layer.weight_scale, layer.weight).detach(), layer.bias.detach()
    below = torch.floor(layer.weight / scale)
    rest = (layer.weight / scale - below).clamp(0.001, 0.999)
    low, high = STRETCH
    raw = torch.logit((rest - low) / (high - low)).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=ADAROUND_LR)
    generator = torch.Generator().manual_seed(0)
    size = float_output.pow(2).mean().clamp_min(1e-12)
    for step in range(ADAROUND_STEPS):
        batch = torch.randint(len(quantized_input), (ADAROUND_BATCH,), generator=generator)
        with torch.enable_grad():
            up = torch.clamp(torch.sigmoid(raw) * (high - low) + low, 0, 1)
            levels = torch.clamp(below + up, -layer.qmax, layer.qmax)
            output = layer.operation(quantized_input[batch], levels * scale, bias)
            loss = F.mse_loss(output, float_output[batch]) / size
            progress = step / ADAROUND_STEPS
            if progress > WARMUP:
                share = (progress - WARMUP) / (1 - WARMUP)
                sharpness = SHARPNESS[0] + share * (SHARPNESS[1] - SHARPNESS[0])
                undecided = 1 - (2 * up - 1).abs().pow(sharpness)
                loss = loss + ADAROUND_REGULARIZATION * undecided.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    up = (torch.sigmoid(raw) * (high - low) + low >= 0.5).float()
    layer.weight.copy_(torch.clamp(below + up, -layer.qmax, layer.qmax) * scale)


Visit = Callable[[Layer, Tensor, Tensor], None]
"""Called with a layer, its input in the quantized network and its output in the float one."""


def _walk(placed: fx.GraphModule, images: Tensor, visit: Visit, *, title: str) -> None:
    """Runs the float and the quantized network side by side and lets `visit` change each layer.

    A layer is visited before its own quantized output is computed, so that the layers after it see
    what the change did.
    """
    values: dict[fx.Node, tuple[Any, Any]] = {}
    readers = {node: len(node.users) for node in placed.graph.nodes}
    layers = iter(track(layers_of(placed), title, total=len(layers_of(placed))))
    interpreter = fx.Interpreter(placed)
    for node in placed.graph.nodes:
        if node.op == "placeholder":
            values[node] = (images, images)
        elif node.op != "output":
            sides: list[Any] = []
            for side, mode in enumerate(MODES):
                own = {value: pair[side] for value, pair in values.items()}
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), own.__getitem__)
                module = module_of(placed, node)
                if isinstance(module, ActivationQuantizer | Layer):
                    module.mode = mode
                if isinstance(module, Layer) and mode == "round":
                    next(layers)
                    if module.source is not None:
                        visit(module, args[0], sides[0])
                sides.append(getattr(interpreter, node.op)(node.target, args, kwargs))
            values[node] = (sides[0], sides[1])
        for source in node.all_input_nodes:
            readers[source] -= 1
            if not readers[source]:
                del values[source]
