"""Lowers a classifier to the layers and operators that ONNX Runtime has integer kernels for.

The graph stays in float, and its results stay the same.
"""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from compress.architectures.build import Classifier, Normalize
from compress.int8.graph import (
    NORMALIZE,
    aten,
    clean,
    insert_call,
    layer_of,
    module_of,
    only_reader,
    set_module,
    shape_of,
    substitute,
    tensor_of,
)
from compress.int8.layer import NO_PAD, Layer, per_channel
from compress.int8.operators import FloatActivation
from compress.int8.quantizer import ImageInput
from compress.int8.tracing import trace

MAX_GROWTH = 2
"""A layer that absorbs a pool may have at most this many times as many inputs."""


def lower(model: Classifier) -> fx.GraphModule:
    """Returns a copy of the model as a float graph, ready for `insert_quantizers`.

    Raises:
        CompressError: the network cannot be traced.
    """
    lowered = trace(model)
    with torch.no_grad():
        _fold_pads(lowered)
        _fold_batchnorms(lowered)
        _fold_channel_factors(lowered)
        _fold_uneven_pools(lowered)
        _split_activations(lowered)
        _fold_normalization(lowered)
    clean(lowered)
    return lowered


def _fold_pads(traced: fx.GraphModule) -> None:
    """Makes explicit zero padding part of the convolutions after it.

    Otherwise the Pad would be a float operator between two conversions.
    """
    for node in list(traced.graph.nodes):
        readers = [layer_of(traced, user) for user in node.users]
        pad = _zero_pad(node)
        if pad is None or not all(layer is not None and layer.is_convolution for layer in readers):
            continue
        for layer in readers:
            assert layer is not None
            geometry = layer.operation.keywords  # type: ignore[attr-defined]
            top, left = geometry["padding"]
            sides = (pad[0] + left, pad[1] + left, pad[2] + top, pad[3] + top)
            even = sides[0] == sides[1] and sides[2] == sides[3]
            geometry["pad"] = NO_PAD if even else sides
            geometry["padding"] = (sides[2], sides[0]) if even else (0, 0)
        substitute(traced, node, node.args[0])


def _zero_pad(node: fx.Node) -> tuple[int, int, int, int] | None:
    """Returns left, right, top, and bottom of a node that pads images with zeros."""
    if node.target is aten.constant_pad_nd.default:
        _, pad, value = (*node.args, 0)[:3]
    elif node.target is aten.pad.default:
        _, pad, mode, value = (*node.args, "constant", None)[:4]
        if mode != "constant":
            return None
    else:
        return None
    assert isinstance(pad, list | tuple)
    if value not in (0, None) or len(pad) != 4 or min(pad) < 0:
        return None
    left, right, top, bottom = map(int, pad)
    return left, right, top, bottom


def _fold_batchnorms(traced: fx.GraphModule) -> None:
    """Folds a BatchNorm into the layer before it, or turns it into a depthwise layer.

    It is `y = factor * x + shift` per channel; a single weight per channel is exact in int8.
    """
    for node in list(traced.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        (output,) = (user for user in node.users if user.target is operator.getitem)
        source, *statistics = node.args[:5]
        gamma, beta, mean, variance = (tensor_of(traced, value) for value in statistics)
        assert mean is not None
        assert variance is not None
        factor = (1 if gamma is None else gamma) / torch.sqrt(variance + node.args[6])
        shift = (0 if beta is None else beta) - mean * factor
        layer = layer_of(traced, source)
        if layer is not None and only_reader(source) is node:
            _scale_outputs(layer, factor)
            layer.bias.add_(shift)
            new = source
        elif len(shape_of(output) or ()) == 4:
            name = str(statistics[2].target).replace("running_mean", "affine")
            geometry = ((1, 1), (0, 0), (1, 1), len(factor))
            affine = Layer.conv(factor.view(-1, 1, 1, 1), shift, geometry)
            set_module(traced, name, affine)
            new = insert_call(traced, output, name, (source,))
        else:
            continue
        substitute(traced, output, new)
        traced.graph.erase_node(node)


def _fold_channel_factors(traced: fx.GraphModule) -> None:
    """Folds a learned factor (ConvNeXt's layer scale) into the layer before it.

    Also through a ReLU, as in PP-HGNetV2, if no factor is negative.
    """
    for node in list(traced.graph.nodes):
        if node.target is aten.mul.Tensor:
            left, right = node.args
            if not _fold_channel_factor(traced, node, left, right):
                _fold_channel_factor(traced, node, right, left)


def _fold_channel_factor(
    traced: fx.GraphModule, product: fx.Node, value: object, constant: object
) -> bool:
    """Folds one factor if it is constant per output channel of a layer; returns whether it did."""
    factor = tensor_of(traced, constant)
    if factor is None or not isinstance(value, fx.Node):
        return False
    source = _layer_before(traced, value, through_relu=bool((factor >= 0).all()))
    rank = len(shape_of(value) or ())
    if source is None or factor.ndim > rank:
        return False
    layer, channel_dim = source
    sizes = [1] * (rank - factor.ndim) + list(factor.shape)
    if any(size != 1 for dim, size in enumerate(sizes) if dim != channel_dim):
        return False
    _scale_outputs(layer, factor.flatten().expand(len(layer.weight)))
    substitute(traced, product, value)
    return True


def _layer_before(
    traced: fx.GraphModule, node: fx.Node, *, through_relu: bool
) -> tuple[Layer, int] | None:
    """Returns the layer that a value comes from, possibly permuted, and its channel dimension."""
    order = list(range(len(shape_of(node) or ())))
    while only_reader(node) is not None:
        source = node.args[0] if node.args else None
        layer = layer_of(traced, node)
        if layer is not None and layer.is_convolution:
            return layer, order.index(1)
        flattened = layer_of(traced, source)
        if node.target is aten.reshape.default and flattened is not None:
            assert isinstance(source, fx.Node)
            # The matrix output of a linear layer, reshaped to its leading dimensions.
            linear = not flattened.is_convolution and only_reader(source) is node
            return (flattened, order.index(len(order) - 1)) if linear else None
        if node.target is aten.permute.default:
            order = [int(node.args[1][axis]) for axis in order]  # type: ignore[arg-type, index]
        elif node.target is not aten.relu.default or not through_relu:
            return None
        assert isinstance(source, fx.Node)
        node = source
    return None


def _fold_uneven_pools(traced: fx.GraphModule) -> None:
    """Folds an adaptive pool with uneven windows (VGG's, on small images) into a linear layer.

    Each output is a mean of inputs, so the pool is a matrix, which is multiplied with the weight
    of the layer after it: where the pool enlarges its input, the layer shrinks accordingly.
    """
    for node in list(traced.graph.nodes):
        if node.target is not aten.adaptive_avg_pool2d.default:
            continue
        source, flattened = node.args[0], only_reader(node)
        before, after = shape_of(source), shape_of(node)
        assert before is not None
        assert after is not None
        if before[1:] == after[1:]:
            substitute(traced, node, source)
            continue
        layer = layer_of(traced, only_reader(flattened)) if flattened is not None else None
        n_before, n_after = before[2:].numel(), after[2:].numel()
        plain = all(size % pooled == 0 for size, pooled in zip(before[2:], after[2:], strict=True))
        if flattened is None or layer is None or plain or n_before > MAX_GROWTH * n_after:
            continue
        if shape_of(flattened)[1:] != (after[1] * n_after,):  # type: ignore[index]
            continue
        basis = torch.eye(n_before).view(n_before, 1, *before[2:])
        pool = F.adaptive_avg_pool2d(basis, (after[2], after[3])).flatten(1)
        weight = layer.weight.view(-1, before[1], n_after) @ pool.T
        layer.weight = nn.Parameter(weight.flatten(1))
        substitute(traced, node, source)
        flattened.target, flattened.args = aten.flatten.using_ints, (source, 1)
        flattened.meta["val"] = source.meta["val"].flatten(1)


def _split_activations(traced: fx.GraphModule) -> None:
    """Splits HardSwish into a gate and a product, for integer kernels; fuses SiLU and GELU."""
    for node in list(traced.graph.nodes):
        if node.target is aten.hardswish.default:
            gate = insert_call(traced, node, aten.hardsigmoid.default, (node.args[0],))
            new = insert_call(traced, gate, aten.mul.Tensor, (node.args[0], gate))
        elif node.target is aten.silu.default or (
            node.target is aten.gelu.default and node.kwargs.get("approximate", "none") == "none"
        ):
            name = f"{node.name}_activation"
            is_silu = node.target is aten.silu.default
            set_module(traced, name, FloatActivation("silu" if is_silu else "gelu"))
            new = insert_call(traced, node, name, node.args[:1])
        else:
            continue
        substitute(traced, node, new)


def _fold_normalization(traced: fx.GraphModule) -> None:
    """Folds the normalization into the first convolution, which then takes uint8 images.

    With zero point z and scale s: `w * (p / 255 - mean) / std = w' * s * (p - z) + w' * s * (z -
    255 * mean)`, where `w' = w / (255 * std * s)`, close to w. The second term joins the
    bias: exact except for the zero padding.
    """
    node = next(n for n in traced.graph.nodes if n.target == NORMALIZE)
    normalize = module_of(traced, node)
    assert isinstance(normalize, Normalize)
    reader = only_reader(node)
    layer = layer_of(traced, reader)
    if layer is None or not layer.is_convolution or layer.groups > 1:
        return
    mean, std = normalize.mean, normalize.std
    zero_point = round(255 * float(mean.mean()))
    scale = 1 / (255 * float(std.mean()))
    layer.weight.div_(255 * std * scale)
    layer.bias.add_((layer.weight * scale * (zero_point - 255 * mean)).sum((1, 2, 3)))
    set_module(traced, NORMALIZE, ImageInput(scale, zero_point))


def _scale_outputs(layer: Layer, factor: Tensor) -> None:
    layer.weight.mul_(per_channel(factor, layer.weight))
    layer.bias.mul_(factor)
