"""Inserts quantizers into a lowered graph, in one pass.

ONNX Runtime runs an operator in int8 if all its inputs come from a DequantizeLinear and its output
goes to one QuantizeLinear. So every output of such an operator gets one quantizer, which all its
readers share and which clips like the activation function after it. Operators that only move or
select values (max pooling, reshaping) reuse the quantizer of their input; all others stay in float.
An operator without weights only runs in int8 between operators that are int8 anyway.
"""

import copy
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx

from compress.checkpoint import ALL_INT8, QuantizedLayout
from compress.int8.graph import (
    NORMALIZE,
    aten,
    clean,
    insert_call,
    layer_of,
    module_of,
    only_reader,
    set_mode,
    set_module,
    shape_of,
    substitute,
)
from compress.int8.operators import AddConstant, BinaryOperator, FloatActivation
from compress.int8.quantizer import ActivationQuantizer, ImageInput

BINARY: Mapping[object, Literal["add", "multiply"]] = {
    aten.add.Tensor: "add",
    aten.mul.Tensor: "multiply",
}
INT8_OPERATORS = {
    *BINARY,
    aten.cat.default,
    aten.avg_pool2d.default,
    aten.mean.dim,
    aten.adaptive_avg_pool2d.default,
    aten.sigmoid.default,
    aten.leaky_relu.default,
}
"""Operators without weights that have integer kernels in ONNX Runtime."""
DATA_MOVEMENT = {
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
"""Operators that move or select values: input and output share a quantizer."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An activation function that clips (and scales), which a quantizer does anyway."""

    lowest: float = -math.inf
    highest: float = math.inf
    gain: float = 1.0


NO_CLIP, HARD_SIGMOID = Clip(), Clip(lowest=0, highest=6, gain=1 / 6)
HARD_SIGMOID_SHIFT = 3.0
"""`HardSigmoid(x) = clip(x + 3, 0, 6) / 6`."""
HARDTANH_BOUNDS = (-1.0, 1.0)
"""Defaults of aten.hardtanh."""
CLIPS: Mapping[object, Clip] = {
    aten.relu.default: Clip(lowest=0),
    aten.hardsigmoid.default: HARD_SIGMOID,
}


def insert_quantizers(
    lowered: fx.GraphModule, layout: QuantizedLayout = ALL_INT8
) -> fx.GraphModule:
    """Returns a copy of a graph from `lower` with quantizers, not yet calibrated; it takes images.

    The same network always gives the same names.
    """
    model = fx.GraphModule(copy.deepcopy(lowered), copy.deepcopy(lowered.graph))
    inserter = _Inserter(model, frozenset(layout.float_layers))
    for node in list(model.graph.nodes):
        inserter.visit(node)
    clean(model)
    set_mode(model, "fake_quantize")
    return model


class _Inserter:
    """Walks the graph once and keeps track of which values are quantized, and by what."""

    def __init__(self, model: fx.GraphModule, float_layers: frozenset[str]) -> None:
        self.model = model
        self.float_layers = float_layers
        self.quantizers: dict[fx.Node, str] = {}
        """Name of the quantizer of each quantized value."""
        self.copies: dict[fx.Node, fx.Node] = {}
        """Values of float operators and their quantized copies, which int8 operators read."""
        self.fused: set[fx.Node] = set()
        """Activations that became part of a quantizer."""
        self.feeds_int8: set[fx.Node] = set()
        """Values read by an operator that will be int8 if possible."""
        for node in reversed(model.graph.nodes):
            if any(self._wants_int8(user) for user in node.users):
                self.feeds_int8.add(node)

    def visit(self, node: fx.Node) -> None:
        """Inserts what a node needs; nodes come in execution order."""
        if node in self.fused:
            return
        if isinstance(module_of(self.model, node), ImageInput):
            self.quantizers[node] = NORMALIZE
        elif self._is_int8_layer(node):
            self._quantize_layer(node)
        elif (layer := layer_of(self.model, node)) is not None:
            layer.has_quantized_input = node.args[0] in self.quantizers
        elif node.target is aten.hardsigmoid.default:
            if self._is_between_int8(node):
                self._quantize_gate(node)
        elif self._is_silu(node) and self._is_between_int8(node):
            self._ensure_quantized(node.args[0], node)
            self._quantize(node)
        elif node.target in INT8_OPERATORS and self._is_between_int8(node) and _only_tensors(node):
            self._quantize_operator(node)
        elif (node.target in DATA_MOVEMENT or _clip_of(node)) and node.args[0] in self.quantizers:
            name = self.quantizers[node.args[0]]  # type: ignore[index]
            if shape_of(node) is None or _is_output(node):
                self.quantizers[node] = name  # a list of tensors, each to be quantized
            else:
                self._quantize(node, name)

    def _is_int8_layer(self, node: fx.Node) -> bool:
        layer = layer_of(self.model, node)
        return layer is not None and str(node.target) not in self.float_layers

    def _wants_int8(self, node: fx.Node) -> bool:
        passes_on = (
            node.target in INT8_OPERATORS | DATA_MOVEMENT or _clip_of(node) or self._is_silu(node)
        )
        return self._is_int8_layer(node) or (bool(passes_on) and node in self.feeds_int8)

    def _is_silu(self, node: fx.Node) -> bool:
        """SiLU runs in float, but between int8 operators all its readers need a quantized input."""
        module = module_of(self.model, node)
        return isinstance(module, FloatActivation) and module.kind == "silu"

    def _is_between_int8(self, node: fx.Node) -> bool:
        """Returns whether an operator without weights is between int8 operators."""
        return node in self.feeds_int8 and any(n in self.quantizers for n in node.all_input_nodes)

    def _quantize_layer(self, node: fx.Node) -> None:
        layer = layer_of(self.model, node)
        assert layer is not None
        layer.quantize(self._ensure_quantized(node.args[0], node))
        # A Gemm may return its int32 sums as floats; a convolution cannot.
        if layer.is_convolution or node in self.feeds_int8:
            self._quantize_output(node, node.name)

    def _quantize_operator(self, node: fx.Node) -> None:
        sources = [self._ensure_quantized(value, node) for value in _tensors(node)]
        original_name = node.name
        if node.target in BINARY:
            name = f"{node.name}_int8"
            module = BinaryOperator(BINARY[node.target], (sources[0], sources[1]))
            set_module(self.model, name, module)
            new = insert_call(self.model, node, name, node.args)
            substitute(self.model, node, new)
            node = new
        self._quantize_output(node, original_name)

    def _quantize_gate(self, node: fx.Node) -> None:
        """HardSigmoid: a shift, in the bias of a layer if possible, and a clipping quantizer."""
        self._ensure_quantized(node.args[0], node)
        name = f"{node.name}_shift"
        set_module(self.model, name, AddConstant(HARD_SIGMOID_SHIFT))
        shifted = insert_call(self.model, node, name, node.args)
        substitute(self.model, node, shifted)
        self._quantize(shifted, self._add_quantizer(node.name, HARD_SIGMOID))

    def _quantize_output(self, node: fx.Node, name: str) -> None:
        """Quantizes an operator's output, fused with a clipping activation after it, if any.

        `name` is the operator's in the lowered graph.
        """
        if _is_output(node):
            return
        reader, layer = only_reader(node), layer_of(self.model, node)
        clip = _clip_of(reader)
        if clip is HARD_SIGMOID and layer is None:
            clip = None  # its shift needs a layer's bias, or a separate operator
        if clip is None:
            self._quantize(node, self._add_quantizer(name))
            return
        assert reader is not None
        if clip is HARD_SIGMOID:
            assert layer is not None
            layer.bias.data += HARD_SIGMOID_SHIFT
        self.fused.add(reader)
        substitute(self.model, reader, node)
        self._quantize(node, self._add_quantizer(reader.name, clip))

    def _ensure_quantized(self, value: object, reader: fx.Node) -> str:
        """Makes a reader's input quantized if it is not yet; returns the quantizer's name."""
        assert isinstance(value, fx.Node)
        if value not in self.quantizers:
            if value not in self.copies:
                name = self._add_quantizer(_origin(value).name)
                self.copies[value] = self._insert_call(value, name)
            reader.replace_input_with(value, self.copies[value])
            value = self.copies[value]
        return self.quantizers[value]

    def _quantize(self, node: fx.Node, name: str | None = None) -> None:
        """Puts the named quantizer, or a new one, between a node and all its readers."""
        new = self._insert_call(node, name or self._add_quantizer(node.name))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)

    def _add_quantizer(self, value: str, clip: Clip = NO_CLIP) -> str:
        """Adds a quantizer named after a value of the lowered graph; its range is that value's."""
        name = f"{value}_quantizer"
        if not hasattr(self.model, name):
            set_module(
                self.model,
                name,
                ActivationQuantizer(lowest=clip.lowest, highest=clip.highest, gain=clip.gain),
            )
        return name

    def _insert_call(self, node: fx.Node, name: str) -> fx.Node:
        new = insert_call(self.model, node, name, (node,))
        self.quantizers[new] = name
        return new


def _clip_of(node: fx.Node | None) -> Clip | None:
    """Returns what an activation function clips to, None for any other node.

    One whose bounds exclude zero does not count: zero is always a level, so a quantizer cannot
    clip it.
    """
    if node is not None and node.target is aten.hardtanh.default:
        given = [float(value) for value in node.args[1:]]  # type: ignore[arg-type]
        lowest, highest = [*given, *HARDTANH_BOUNDS[len(given) :]]  # ReLU6 has bounds 0 and 6
        clip = Clip(lowest=lowest, highest=highest)
        return clip if clip.lowest <= 0 <= clip.highest else None
    return CLIPS.get(node.target) if node is not None else None


def _tensors(node: fx.Node) -> list[fx.Node]:
    """Returns an operator's inputs; an input read twice appears twice."""
    values = node.args[0] if node.target is aten.cat.default else node.args
    return [value for value in values if isinstance(value, fx.Node)]  # type: ignore[union-attr]


def _only_tensors(node: fx.Node) -> bool:
    """Returns whether no operand of a sum or product is a number."""
    return node.target not in BINARY or all(
        isinstance(value, fx.Node) and shape_of(value) is not None for value in node.args
    )


def _origin(node: fx.Node) -> fx.Node:
    """Returns the value that a node passes on by data movement."""
    while node.target in DATA_MOVEMENT and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _is_output(node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)
