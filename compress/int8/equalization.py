"""Cross-layer equalization (Nagel et al., arXiv 1906.04721, section 4.1)."""

import torch
from torch import fx

from compress.int8.graph import aten, layer_of, only_reader
from compress.int8.layer import Layer, per_channel

ROUNDS = 10
RELU6_BOUNDS = (0.0, 6.0)


@torch.no_grad()
def equalize(lowered: fx.GraphModule) -> int:
    """Balances channel ranges between each convolution and the next, in place.

    Channel i of the first layer is divided by `s_i = sqrt(r1_i / r2_i)` and the second layer's
    inputs are multiplied by it (equation 11), which is exact for ReLU. ReLU6 between two layers
    becomes ReLU, as in the paper.

    Returns:
        The number of pairs.
    """
    pairs = []
    for node in lowered.graph.nodes:
        first, reader = layer_of(lowered, node), only_reader(node)
        if first is None or reader is None:
            continue
        is_relu6 = reader.target is aten.hardtanh.default and reader.args[1:] == RELU6_BOUNDS
        if reader.target is aten.relu.default or is_relu6:
            activation, reader = reader, only_reader(reader)
            if is_relu6 and layer_of(lowered, reader) is not None:
                activation.target, activation.args = aten.relu.default, activation.args[:1]
        second = layer_of(lowered, reader)
        if second is not None and second.is_convolution and first.is_convolution:
            depthwise = second.groups == len(first.weight)
            if second.groups == 1 or depthwise:
                pairs.append((first, second, depthwise))
    for _ in range(ROUNDS):
        for first, second, depthwise in pairs:
            _balance(first, second, depthwise=depthwise)
    lowered.recompile()
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
