"""Where the quantised modules go: one pass over the traced network.

ONNX Runtime runs an operator in int8 when all its inputs come out of a DequantizeLinear and its
output, after at most one fused activation, goes into one QuantizeLinear. So every output of such
an operator gets one quantiser, shared by all who read it; operators that only move or choose
values (max pooling, reshaping) pass their input's quantiser on; everything else is a float island.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import StochasticDepth

from compress.architectures.build import Classifier, Normalize
from compress.quantize.modules import (
    ActivationQuantizer,
    GlobalAveragePool,
    PixelInput,
    QuantizedLayer,
)

IDENTITY = "identity"
LAYER, ADD, CONCAT, GLOBAL_AVERAGE, AVERAGE = "layer", "add", "concat", "global average", "average"
ACTIVATION, MOVE = "activation", "move"
INT8_KINDS = (LAYER, ADD, CONCAT, GLOBAL_AVERAGE, AVERAGE)

MODULE_KINDS: Mapping[type[nn.Module], str] = {
    nn.Dropout: IDENTITY,
    nn.Identity: IDENTITY,
    StochasticDepth: IDENTITY,
    nn.Conv2d: LAYER,
    nn.Linear: LAYER,
    nn.ReLU: ACTIVATION,
    nn.ReLU6: ACTIVATION,
    nn.AvgPool2d: AVERAGE,
    nn.MaxPool2d: MOVE,
    nn.Flatten: MOVE,
}
FUNCTION_KINDS: Mapping[object, str] = {
    F.dropout: IDENTITY,
    operator.add: ADD,
    operator.iadd: ADD,
    torch.add: ADD,
    torch.cat: CONCAT,
    F.relu: ACTIVATION,
    F.relu6: ACTIVATION,
    torch.relu: ACTIVATION,
    F.avg_pool2d: AVERAGE,
    F.max_pool2d: MOVE,
    torch.flatten: MOVE,
    torch.reshape: MOVE,
    torch.transpose: MOVE,
}
METHOD_KINDS: Mapping[str, str] = {
    "relu": ACTIVATION,
    "flatten": MOVE,
    "reshape": MOVE,
    "view": MOVE,
    "transpose": MOVE,
    "permute": MOVE,
    "contiguous": MOVE,
}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize | StochasticDepth) or super().is_leaf_module(
            m, module_qualified_name
        )


def place_quantizers(model: Classifier) -> fx.GraphModule:
    """Returns a copy of the model with quantised modules in place, still to be calibrated.

    Args:
        model: in eval mode; its BatchNorms are folded into the convolutions before them.

    Returns:
        A module that takes pixels, as the model does. The same model always gives the same names.
    """
    root = copy.deepcopy(model)
    assert not root.training
    root.requires_grad_(requires_grad=True)
    graph = _Tracer().trace(root)
    traced = fx.GraphModule(root, graph)
    _fold_batchnorms(traced)
    _drop_identities(traced)
    _replace_global_averages(traced)
    _propagate_shapes(traced, root)
    _fold_pixels(traced)
    _place(traced)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def freeze(model: fx.GraphModule) -> fx.GraphModule:
    """Turns all float weights into integers, in place, and returns the model."""
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer):
            layer.freeze(model.get_submodule(layer.source).scale)  # type: ignore[arg-type]
    return model.eval()


def _module(traced: fx.GraphModule, node: object) -> nn.Module | None:
    if isinstance(node, fx.Node) and node.op == "call_module":
        return traced.get_submodule(str(node.target))
    return None


def _kind(traced: fx.GraphModule, node: fx.Node) -> str | None:
    """Returns what a node is for the placement, None for a float island."""
    module = _module(traced, node)
    if module is not None:
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            return None
        if isinstance(module, GlobalAveragePool):
            return GLOBAL_AVERAGE
        return MODULE_KINDS.get(type(module))
    if node.op == "call_method":
        return METHOD_KINDS.get(str(node.target))
    if node.op != "call_function":
        return None
    kind = FUNCTION_KINDS.get(node.target)
    if kind == ADD and not all(_is_tensor(argument) for argument in node.args):
        return None  # a constant, or arithmetic on sizes
    return kind


def _is_tensor(value: object) -> bool:
    return isinstance(value, fx.Node) and "tensor_meta" in value.meta


def _replace_module(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(traced.get_submodule(parent), attribute, module)


def _fold_batchnorms(traced: fx.GraphModule) -> None:
    modules = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        norm = _module(traced, node)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        conv = _module(traced, before)
        if not isinstance(conv, nn.Conv2d) or len(before.users) > 1:
            continue
        if modules.count(str(before.target)) > 1:  # a shared layer feeds another BatchNorm too
            continue
        fused = fuse_conv_bn_eval(conv, norm)
        _replace_module(traced, str(before.target), fused)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


def _drop_identities(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if _kind(traced, node) == IDENTITY:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _replace_global_averages(traced: fx.GraphModule) -> None:
    """Puts GlobalAveragePool for its many spellings."""
    one = (1, (1, 1), [1, 1])
    for node in list(traced.graph.nodes):
        module = _module(traced, node)
        is_adaptive = isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in one
        if node.target is F.adaptive_avg_pool2d:
            is_adaptive = (*node.args, *node.kwargs.values())[1] in one
        is_mean = node.op == "call_method" and node.target == "mean"
        is_mean = is_mean and list((*node.args, *node.kwargs.values())[1:]) in ([[2, 3]], [(2, 3)])
        if not is_adaptive and not is_mean:
            continue
        name = f"global_average_{node.name}"
        traced.add_submodule(name, GlobalAveragePool())
        with traced.graph.inserting_before(node):
            new = traced.graph.call_module(name, (node.args[0],))
            if is_mean:
                new = traced.graph.call_function(torch.flatten, (new, 1))
        node.replace_all_uses_with(new)
        traced.graph.erase_node(node)


def _propagate_shapes(traced: fx.GraphModule, root: Classifier) -> None:
    traced.recompile()
    normalize = root.normalize
    assert isinstance(normalize, Normalize)
    spec = normalize.preprocess
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ShapeProp(traced).propagate(torch.zeros(1, spec.channels, spec.size, spec.size))


@torch.no_grad()
def _fold_pixels(traced: fx.GraphModule) -> None:
    """Folds the normalisation into the first convolution, which then takes the image's bytes.

    With zero point z: `w * (p / 255 - mean) / std = w' * (p - z) + w' * (z - 255 * mean)`, where
    `w' = w / (255 * std)`. The second term joins the bias: exact but for the zero padding.
    """
    node = next(n for n in traced.graph.nodes if isinstance(_module(traced, n), Normalize))
    normalize = _module(traced, node)
    assert isinstance(normalize, Normalize)
    (user, *others) = node.users
    conv = _module(traced, user)
    if others or not isinstance(conv, nn.Conv2d) or conv.groups > 1:
        return
    mean, std = normalize.mean, normalize.std
    zero_point = round(255 * float(mean.mean()))
    weight = conv.weight / (255 * std)
    shift = (weight * (zero_point - 255 * mean)).sum((1, 2, 3))
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(weight)
    folded.bias = nn.Parameter(shift if conv.bias is None else conv.bias + shift)
    _replace_module(traced, str(user.target), folded)
    _replace_module(traced, str(node.target), PixelInput(zero_point))


class _Placer:
    """Inserts quantisers and remembers which values are quantised, and by what."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.source: dict[fx.Node, str] = {}
        self.count = 0

    def quantize(self, node: fx.Node, name: str | None = None) -> None:
        """Puts a quantiser, a new one or the one named, between a node and all its readers."""
        if name is None:
            name = f"quantizer_{self.count}"
            self.count += 1
            self.traced.add_submodule(name, ActivationQuantizer())
        graph = self.traced.graph
        with graph.inserting_after(node):
            new = graph.call_module(name, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        new.meta = dict(node.meta)
        self.source[new] = name

    def require(self, node: fx.Node) -> None:
        """Makes sure that a value is quantised."""
        if node not in self.source:
            self.quantize(node)


def _place(traced: fx.GraphModule) -> None:
    placer = _Placer(traced)
    done: set[fx.Node] = set()  # activations that the operator before them swallowed
    for node in list(traced.graph.nodes):
        if isinstance(_module(traced, node), PixelInput):
            placer.source[node] = str(node.target)
        kind = _kind(traced, node)
        if node in done or kind is None:
            continue
        if kind in INT8_KINDS:
            for value in _inputs(node, kind):
                placer.require(value)
            if kind == LAYER:
                _quantize_layer(traced, node, placer)
            end = node
            if len(node.users) == 1 and _kind(traced, only := next(iter(node.users))) == ACTIVATION:
                end = only
                done.add(end)
            if not _is_output(end):
                placer.quantize(end)
        elif node.args[0] in placer.source and not _is_output(node):
            # Moving or clipping values needs no scale of its own.
            placer.quantize(node, placer.source[node.args[0]])


def _inputs(node: fx.Node, kind: str) -> list[fx.Node]:
    if kind == CONCAT:
        return list(node.args[0])  # type: ignore[arg-type]
    values = node.args if kind == ADD else node.args[:1]
    return list(values)  # type: ignore[arg-type]


def _quantize_layer(traced: fx.GraphModule, node: fx.Node, placer: _Placer) -> None:
    layer = _module(traced, node)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    source = placer.source[node.args[0]]  # type: ignore[index]
    _replace_module(traced, str(node.target), QuantizedLayer(layer, source=source))


def _is_output(node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)


def observe(model: nn.Module, *, on: bool) -> None:
    """Switches all quantised modules between noting ranges (in float) and quantising."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | QuantizedLayer):
            module.observing = on
