"""The nodes of an ONNX graph, their links, and its constants."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import NodeProto, TensorProto
from onnx.external_data_helper import uses_external_data

DOMAINS = {"", "ai.onnx", "com.microsoft"}
"""Of the operators that the checks know; a file may define others with the same names."""
DEQUANTIZE, QUANTIZE = "DequantizeLinear", "QuantizeLinear"


@dataclass(frozen=True)
class Graph:
    """The nodes of a graph, and who makes and reads each value."""

    nodes: tuple[NodeProto, ...]
    constants: Mapping[str, TensorProto]
    outputs: frozenset[str]
    """The results of the whole graph."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the computed values, as far as they are known; unknown dimensions are 0."""

    @cached_property
    def maker(self) -> Mapping[str, NodeProto]:
        """The node that computes each value."""
        return {value: node for node in self.nodes for value in node.output if value}

    @cached_property
    def readers(self) -> Mapping[str, tuple[NodeProto, ...]]:
        """The nodes that read each value, one that reads it twice only once."""
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.input):
                found.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    def array(self, value: str) -> np.ndarray | None:
        """Returns a constant; None if the value is computed, or not in memory."""
        tensor = self.constants.get(value)
        if tensor is None or uses_external_data(tensor):
            return None
        return onnx.numpy_helper.to_array(tensor)

    def made_by(self, value: str, operator: str) -> NodeProto | None:
        """Returns the node that computes a value if it is of this type."""
        node = self.maker.get(value)
        return node if node is not None and node.op_type == operator else None

    def is_dequantized(self, value: str) -> bool:
        """Returns whether a value is a dequantized activation."""
        node = self.made_by(value, DEQUANTIZE)
        return node is not None and node.input[0] not in self.constants


def read_graph(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """Returns a graph with the shapes of its values, as far as they are known."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= dict(_constant_nodes(graph))
    return Graph(
        nodes=tuple(node for node in graph.node if node.domain in DOMAINS),
        constants=constants,
        outputs=frozenset(value.name for value in graph.output),
        shapes=shapes,
    )


def attribute(node: NodeProto, name: str, default: int) -> int:
    """Returns an integer attribute of a node."""
    return next((entry.i for entry in node.attribute if entry.name == name), default)


def names(nodes: Iterable[NodeProto]) -> tuple[str, ...]:
    """Returns what to call nodes: their names, or else their first outputs."""
    return tuple(node.name or next(iter(node.output), node.op_type) for node in nodes)


def _constant_nodes(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for node in graph.node:
        if node.op_type == "Constant":
            for entry in node.attribute:
                if entry.name == "value":
                    yield node.output[0], entry.t
                elif entry.name in {"value_int", "value_ints", "value_float", "value_floats"}:
                    plain = onnx.helper.get_attribute_value(entry)
                    kind = np.float32 if "float" in entry.name else np.int64
                    yield node.output[0], onnx.numpy_helper.from_array(np.array(plain, kind))
