"""Convolutions, Gemms, and products with constant weights, in float or int8."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from compress.doctor.onnx_graph import DEQUANTIZE, Graph, attribute, names

FLOAT_LAYERS = ("Conv", "Gemm", "MatMul")
INTEGER_LAYERS = {
    "QLinearConv": ("Conv", 3, 5, 8, 1, 4),
    "QLinearMatMul": ("MatMul", 3, 5, None, 1, 4),
    "QGemm": ("Gemm", 3, 5, 6, 1, 4),
    "ConvInteger": ("Conv", 1, 3, None, None, None),
    "MatMulInteger": ("MatMul", 1, 3, None, None, None),
}
"""Kind, and positions of the inputs: weight, its zero point, bias, input scale, weight scale."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with constant weights."""

    name: str
    kind: str
    """`Conv`, `Gemm`, or `MatMul`."""
    weight: np.ndarray
    """`[out, in / groups, ...]`; integers are levels minus their zero point."""
    dtype: np.dtype
    """Of the stored weights."""
    groups: int
    is_int8: bool
    """Whether it multiplies integers."""
    positions: int
    """Height times width of a convolution's output; 0 if unknown."""
    bias: np.ndarray | None
    """As stored: float, or int32 levels."""
    input_scale: np.ndarray | None
    weight_scale: np.ndarray | None
    bias_scale: np.ndarray | None
    """Of a bias that is dequantized in the file."""

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels; of a group, if each computes several from several."""
        shared = 1 if self.is_depthwise else self.groups
        read = self.weight.shape[1] * self.groups // shared
        return read, len(self.weight) // shared

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel."""
        return self.groups > 1 and self.weight.shape[1] == 1


def layers(graph: Graph) -> Iterator[Layer]:
    """Yields the layers of a graph whose weights are constant."""
    for node in graph.nodes:
        if node.op_type in FLOAT_LAYERS:
            yield from _float_layer(graph, node)
        elif node.op_type in INTEGER_LAYERS:
            yield from _integer_layer(graph, node)


def _float_layer(graph: Graph, node: NodeProto) -> Iterator[Layer]:
    weight, weight_scale, dtype = _operand(graph, node.input[1])
    if weight is None or dtype is None or not _is_matrix(weight):
        return
    bias, bias_scale, _ = _operand(graph, node.input[2] if len(node.input) > 2 else "")
    source = graph.made_by(node.input[0], DEQUANTIZE)
    yield Layer(
        name=names([node])[0],
        kind=node.op_type,
        weight=_outputs_first(node, node.op_type, weight),
        dtype=dtype,
        groups=max(1, attribute(node, "group", 1)),
        is_int8=source is not None,
        positions=math.prod(graph.shapes.get(node.output[0], ())[2:]),
        bias=bias,
        input_scale=graph.array(source.input[1]) if source is not None else None,
        weight_scale=weight_scale,
        bias_scale=bias_scale,
    )


def _integer_layer(graph: Graph, node: NodeProto) -> Iterator[Layer]:
    kind, *places = INTEGER_LAYERS[node.op_type]
    stored, zero_point, bias, input_scale, weight_scale = (
        graph.array(node.input[place]) if place is not None and place < len(node.input) else None
        for place in places
    )
    weight = None
    if stored is not None:
        axis = 0 if _is_output_first(node, kind) else stored.ndim - 1
        weight = _centered(stored, zero_point, axis)
    if stored is None or weight is None or not _is_matrix(weight):
        return
    yield Layer(
        name=names([node])[0],
        kind=kind,
        weight=_outputs_first(node, kind, weight),
        dtype=stored.dtype,
        groups=max(1, attribute(node, "group", 1)),
        is_int8=True,
        positions=math.prod(graph.shapes.get(node.output[0], ())[2:]),
        bias=bias,
        input_scale=input_scale,
        weight_scale=weight_scale,
        bias_scale=None,
    )


def _is_matrix(weight: np.ndarray) -> bool:
    return weight.ndim > 1 and weight.size > 0


def _operand(
    graph: Graph, value: str
) -> tuple[np.ndarray | None, np.ndarray | None, np.dtype | None]:
    """Returns a constant operand, its scale if it is dequantized, and how it is stored."""
    stored = graph.array(value)
    if stored is not None:
        return stored, None, stored.dtype
    source = graph.made_by(value, DEQUANTIZE)
    levels = graph.array(source.input[0]) if source is not None else None
    if source is None or levels is None:
        return None, None, None
    zero_point = graph.array(source.input[2]) if len(source.input) > 2 else None
    centered = _centered(levels, zero_point, attribute(source, "axis", 1))
    return centered, graph.array(source.input[1]), levels.dtype


def _centered(levels: np.ndarray, zero_point: np.ndarray | None, axis: int) -> np.ndarray | None:
    """Returns levels minus their zero point: one for all, or one for each slice of an axis.

    None if there are blocks of other zero points, or zero points that fit nowhere.
    """
    wide = levels.astype(np.int16 if levels.dtype.itemsize == 1 else np.int64)
    if zero_point is None:
        return wide
    if zero_point.size == 1:
        return wide - zero_point.astype(wide.dtype).reshape([1] * levels.ndim)
    axis = axis if levels.ndim > 1 else 0
    if not -levels.ndim <= axis < levels.ndim or zero_point.shape != (levels.shape[axis],):
        return None
    slices = np.moveaxis(wide, axis, -1) - zero_point.astype(wide.dtype)
    return np.moveaxis(slices, -1, axis)


def _is_output_first(node: NodeProto, kind: str) -> bool:
    return kind == "Conv" or (kind == "Gemm" and bool(attribute(node, "transB", 0)))


def _outputs_first(node: NodeProto, kind: str, weight: np.ndarray) -> np.ndarray:
    return weight if _is_output_first(node, kind) else weight.reshape(-1, weight.shape[-1]).T
