"""Where the quantized modules go: one pass over the rewritten graph.

ONNX Runtime runs an operator in int8 when all its inputs come out of a DequantizeLinear and its
output goes into one QuantizeLinear. So every output of such an operator gets one quantizer, shared
by all who read it and clipping as the activation after it would; operators that only move or
choose values (max pooling, reshaping) pass their input's quantizer on; everything else is a float
island. An operator without weights goes to int8 only between operators that are int8 anyway.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from compress.architectures.build import Classifier
from compress.checkpoint import ALL_INT8, QuantizedLayout
from compress.int8.common import Mode
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
    trace,
)
from compress.int8.layer import Layer
from compress.int8.modules import (
    ActivationQuantizer,
    Add,
    AddConstant,
    FloatActivation,
    Multiply,
    PixelInput,
)
from compress.int8.rewrite import rewrite

BINARY: Mapping[object, type[Add]] = {aten.add.Tensor: Add, aten.mul.Tensor: Multiply}
INT8 = {
    *BINARY,
    aten.cat.default,
    aten.avg_pool2d.default,
    aten.mean.dim,
    aten.adaptive_avg_pool2d.default,
    aten.sigmoid.default,
}
"""Operators without weights that ONNX Runtime has integer kernels for."""
MOVES = {
    aten.max_pool2d.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    operator.getitem,
}
"""Operators that move or choose values: input and output share a quantizer."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An activation function that clips (and scales): what a quantizer does anyway."""

    lowest: float = -math.inf
    highest: float = math.inf
    gain: float = 1.0


NO_CLIP, HARD_SIGMOID = Clip(), Clip(lowest=0, highest=6, gain=1 / 6)
HARD_SIGMOID_SHIFT = 3.0
"""`HardSigmoid(x) = clip(x + 3, 0, 6) / 6`."""
HARDTANH_BOUNDS = (-1.0, 1.0)
"""Where the graph does not say them."""
CLIPS: Mapping[object, Clip] = {
    aten.relu.default: Clip(lowest=0),
    aten.hardsigmoid.default: HARD_SIGMOID,
}


def prepare(model: Classifier) -> fx.GraphModule:
    """Returns a copy of the model as a rewritten float graph, in which `place` puts quantizers.

    Args:
        model: takes images; its BatchNorms are folded into the layers before them.

    Raises:
        CompressError: the network cannot be traced.
    """
    traced = trace(model)
    rewrite(traced)
    return traced


def place(prepared: fx.GraphModule, layout: QuantizedLayout = ALL_INT8) -> fx.GraphModule:
    """Returns a copy of a prepared graph with quantized modules in place, still to be calibrated.

    Args:
        prepared: what `prepare` returned.
        layout: names the layers to leave in float.

    Returns:
        A module that takes images. The same network always gives the same names.
    """
    traced = fx.GraphModule(copy.deepcopy(prepared), copy.deepcopy(prepared.graph))
    placer = _Placer(traced, frozenset(layout.float_layers))
    for node in list(traced.graph.nodes):
        placer.visit(node)
    clean(traced)
    set_mode(traced, "round")
    return traced


def freeze(model: fx.GraphModule) -> fx.GraphModule:
    """Settles all scales and turns int8 layers' weights into integers, in place.

    Returns:
        The model itself.
    """
    for quantizer in quantizers_of(model).values():
        quantizer.freeze()
    for node in model.graph.nodes:
        module, sink = module_of(model, node), module_of(model, only_reader(node))
        if isinstance(module, Layer) and module.source is not None:
            module.freeze(model.get_submodule(module.source).scale)  # type: ignore[arg-type]
            if isinstance(sink, ActivationQuantizer):
                module.sink = sink.step
        elif isinstance(module, Add):
            left, right = (model.get_submodule(name) for name in module.sources)
            assert isinstance(left, ActivationQuantizer)
            assert isinstance(right, ActivationQuantizer)
            assert isinstance(sink, ActivationQuantizer)
            module.link(left.affine_out, right.affine_out, sink.affine_in)
    return model.eval()


def layers_of(model: fx.GraphModule) -> dict[str, Layer]:
    """Returns all layers, float and int8, by name and in the order of their execution."""
    found = ((str(node.target), layer_of(model, node)) for node in model.graph.nodes)
    return {name: layer for name, layer in found if layer is not None}


def quantizers_of(model: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    """Returns all activation quantizers by name, in the order of their execution."""
    found = ((str(node.target), module_of(model, node)) for node in model.graph.nodes)
    return {name: module for name, module in found if isinstance(module, ActivationQuantizer)}


def set_mode(model: fx.GraphModule, mode: Mode) -> None:
    """Switches all quantized modules."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | Layer):
            module.mode = mode


class _Placer:
    """Walks the graph once and remembers which values are quantized, and by what."""

    def __init__(self, traced: fx.GraphModule, float_layers: frozenset[str]) -> None:
        self.traced = traced
        self.float_layers = float_layers
        self.source: dict[fx.Node, str] = {}
        self.rounded: dict[fx.Node, fx.Node] = {}
        """Values of float operators and their quantized twins, which int8 operators read."""
        self.swallowed: set[fx.Node] = set()
        """Activations that became part of a quantizer."""
        nodes = list(traced.graph.nodes)
        self.demanded: set[fx.Node] = set()
        """Values that are read by an operator that will be int8 if it can be."""
        for node in reversed(nodes):
            if any(self._demands(user) for user in node.users):
                self.demanded.add(node)

    def visit(self, node: fx.Node) -> None:
        """Places what a node needs; nodes come in the order of their execution."""
        if node in self.swallowed:
            return
        if isinstance(module_of(self.traced, node), PixelInput):
            self.source[node] = NORMALIZE
        elif self._is_int8_layer(node):
            self._quantize_layer(node)
        elif (layer := layer_of(self.traced, node)) is not None:
            layer.reads_levels = node.args[0] in self.source
        elif node.target is aten.hardsigmoid.default:
            if self._pays(node):
                self._quantize_gate(node)
        elif self._is_silu(node) and self._pays(node):
            self._require(node.args[0], node)
            self._quantize(node)
        elif node.target in INT8 and self._pays(node) and _has_tensors_only(node):
            self._quantize_operator(node)
        elif (node.target in MOVES or _clip_of(node)) and node.args[0] in self.source:
            source = self.source[node.args[0]]  # type: ignore[index]
            if shape_of(node) is None or _is_output(node):
                self.source[node] = source  # a list of tensors, each to be quantized
            else:
                self._quantize(node, source)

    def _is_int8_layer(self, node: fx.Node) -> bool:
        layer = layer_of(self.traced, node)
        return layer is not None and str(node.target) not in self.float_layers

    def _demands(self, node: fx.Node) -> bool:
        passes_on = node.target in INT8 | MOVES or _clip_of(node) or self._is_silu(node)
        return self._is_int8_layer(node) or (bool(passes_on) and node in self.demanded)

    def _is_silu(self, node: fx.Node) -> bool:
        """SiLU computes in float, but between int8 operators all its readers want levels."""
        module = module_of(self.traced, node)
        return isinstance(module, FloatActivation) and module.kind == "silu"

    def _pays(self, node: fx.Node) -> bool:
        """Tells whether an operator without weights lies between int8 operators."""
        return node in self.demanded and any(n in self.source for n in node.all_input_nodes)

    def _quantize_layer(self, node: fx.Node) -> None:
        layer = layer_of(self.traced, node)
        assert layer is not None
        layer.place(self._require(node.args[0], node))
        # A Gemm may give its int32 sums as floats; a convolution cannot.
        if layer.is_convolution or node in self.demanded:
            self._quantize_output(node, node.name)

    def _quantize_operator(self, node: fx.Node) -> None:
        sources = [self._require(value, node) for value in _tensors(node)]
        operator_name = node.name
        if node.target in BINARY:
            name = f"{node.name}_int8"
            set_module(self.traced, name, BINARY[node.target]((sources[0], sources[1])))
            new = insert_call(self.traced, node, name, node.args)
            substitute(self.traced, node, new)
            node = new
        self._quantize_output(node, operator_name)

    def _quantize_gate(self, node: fx.Node) -> None:
        """HardSigmoid: a shift, in the bias of a layer if it can be, and a clipping quantizer."""
        self._require(node.args[0], node)
        name = f"{node.name}_shift"
        set_module(self.traced, name, AddConstant(HARD_SIGMOID_SHIFT))
        shifted = insert_call(self.traced, node, name, node.args)
        substitute(self.traced, node, shifted)
        self._quantize(shifted, self._new(node.name, HARD_SIGMOID))

    def _quantize_output(self, node: fx.Node, name: str) -> None:
        """Quantizes an operator's output, with the clipping activation after it if there is one.

        Args:
            node: the operator.
            name: its name in the float graph.
        """
        if _is_output(node):
            return
        reader, layer = only_reader(node), layer_of(self.traced, node)
        clip = _clip_of(reader)
        if clip is HARD_SIGMOID and layer is None:
            clip = None  # it needs a layer's bias to shift, or an operator of its own
        if clip is None:
            self._quantize(node, self._new(name))
            return
        assert reader is not None
        if clip is HARD_SIGMOID:
            assert layer is not None
            layer.bias.data += HARD_SIGMOID_SHIFT
        self.swallowed.add(reader)
        substitute(self.traced, reader, node)
        self._quantize(node, self._new(reader.name, clip))

    def _require(self, value: object, reader: fx.Node) -> str:
        """Makes sure that a value is quantized for a reader; returns the quantizer's name."""
        assert isinstance(value, fx.Node)
        if value not in self.source:
            if value not in self.rounded:
                self.rounded[value] = self._insert(value, self._new(_origin(value).name))
            reader.replace_input_with(value, self.rounded[value])
            value = self.rounded[value]
        return self.source[value]

    def _quantize(self, node: fx.Node, name: str | None = None) -> None:
        """Puts a quantizer, a new one or the one named, between a node and all its readers."""
        new = self._insert(node, name or self._new(node.name))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)

    def _new(self, value: str, clip: Clip = NO_CLIP) -> str:
        """Adds a quantizer named after a value of the float graph; its range is that value's."""
        name = f"{value}_quantizer"
        if not hasattr(self.traced, name):
            set_module(
                self.traced,
                name,
                ActivationQuantizer(lowest=clip.lowest, highest=clip.highest, gain=clip.gain),
            )
        return name

    def _insert(self, node: fx.Node, name: str) -> fx.Node:
        new = insert_call(self.traced, node, name, (node,))
        self.source[new] = name
        return new


def _clip_of(node: fx.Node | None) -> Clip | None:
    """Returns what an activation function clips to, None for any other node.

    One that does not let zero pass is none: zero is always a level, so a quantizer cannot clip it.
    """
    if node is not None and node.target is aten.hardtanh.default:
        given = [float(value) for value in node.args[1:]]  # type: ignore[arg-type]
        lowest, highest = [*given, *HARDTANH_BOUNDS[len(given) :]]  # Relu6 is one with 0 and 6
        clip = Clip(lowest=lowest, highest=highest)
        return clip if clip.lowest <= 0 <= clip.highest else None
    return CLIPS.get(node.target) if node is not None else None


def _tensors(node: fx.Node) -> list[fx.Node]:
    """Returns what an operator computes with, twice if it reads it twice."""
    values = node.args[0] if node.target is aten.cat.default else node.args
    return [value for value in values if isinstance(value, fx.Node)]  # type: ignore[union-attr]


def _has_tensors_only(node: fx.Node) -> bool:
    return node.target not in BINARY or all(
        isinstance(value, fx.Node) and shape_of(value) is not None for value in node.args
    )


def _origin(node: fx.Node) -> fx.Node:
    """Returns the value that a node shows after some moves."""
    while node.target in MOVES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _is_output(node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)
