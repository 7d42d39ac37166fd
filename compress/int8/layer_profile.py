"""Profiles ONNX files layer by layer: what each layer costs in float and in int8."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference

from compress.cache import spread_of
from compress.measure.profile import Operator, profile

PROFILE_ROUNDS = 4
"""The files take turns, so that noise affects all equally."""
WITH_WEIGHTS = ("Conv", "Gemm")
LAYER_OPERATORS = {"Conv", "FusedConv", "QLinearConv", "Gemm", "FusedGemm", "QGemm"}
"""Operators that convolutions and linear layers become in the optimized graph."""
OPTIMIZER_SUFFIX = re.compile(r"(_token_\d+|_nchwc)*$")
"""Suffix that ONNX Runtime's optimizer appends to node names."""
NETWORK_PREFIX = "network."
"""A float file is exported from a `Classifier`, whose layers are below this name."""


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Milliseconds per run, including the operators without weights that follow the layer."""

    float_ms: float
    int8_ms: float


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A value that one layer writes and another reads."""

    writer: str
    reader: str
    conversion_ms: float
    """Time to convert it if the layers differ in precision."""


def layer_costs(
    float_file: Path, int8_file: Path, *, threads: int
) -> tuple[dict[str, LayerCost], float]:
    """Profiles a network's float and int8 files, layer by layer, at batch size 1.

    Returns:
        Costs by layer name, in execution order; and the spread of the rounds' totals.
    """
    rounds: dict[Path, list[dict[str, float]]] = {float_file: [], int8_file: []}
    for _ in range(PROFILE_ROUNDS):
        for path, of_file in rounds.items():
            layers = operators_by_layer(path, threads=threads)
            of_file.append({name: _total_ms(operators) for name, operators in layers.items()})
    times = {
        path: {
            name: statistics.median(ms.get(name, 0.0) for ms in of_file)
            for name in dict.fromkeys(_owners(path).values())
        }
        for path, of_file in rounds.items()
    }
    costs = {
        name: LayerCost(float_ms=times[float_file].get(name, ms), int8_ms=ms)
        for name, ms in times[int8_file].items()
    }
    totals = [[sum(ms.values()) for ms in of_file] for of_file in rounds.values()]
    return costs, max(spread_of(of_file) for of_file in totals)


def layer_edges(int8_file: Path, *, threads: int) -> list[Edge]:
    """Returns which layers read which layers' outputs, and what converting those would cost.

    A conversion is assumed to cost the value's elements times the time that DequantizeLinear and
    QuantizeLinear take per element on this machine.
    """
    proto = onnx.shape_inference.infer_shapes(onnx.load(int8_file))
    shapes = {
        value.name: [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        for value in proto.graph.value_info
    }
    owners = _owners(int8_file)
    ms = _conversion_ms_per_element(threads)
    edges = []
    for node in proto.graph.node:
        reader = owners.get(node.output[0])
        for value in node.input:
            writer = owners.get(value)
            if writer and reader and writer != reader:
                elements = int(np.prod(shapes.get(value, [0])))
                edges.append(Edge(writer=writer, reader=reader, conversion_ms=elements * ms))
    return edges


def operators_by_layer(path: Path, *, threads: int) -> dict[str, list[Operator]]:
    """Profiles a file; returns each layer's operator and those without weights that follow it."""
    owners = _owners(path)
    operators: dict[str, list[Operator]] = defaultdict(list)
    for operator in profile(path, threads=threads):
        owner = owners.get(operator.name) or owners.get(original_name(operator.name))
        if owner is not None:
            operators[owner].append(operator)
    return operators


def original_name(name: str) -> str:
    """Returns the name that a node had before ONNX Runtime's optimizer."""
    return OPTIMIZER_SUFFIX.sub("", name)


def _conversion_ms_per_element(threads: int) -> float:
    """Returns the milliseconds per element of a DequantizeLinear and a QuantizeLinear."""
    side = 256
    text = f"""<ir_version: 9, opset_import: ["": 18]>
    convert (uint8[batch, 4, {side}, {side}] x) => (uint8[batch, 4, {side}, {side}] y)
    <float scale = {{0.1}}, float other = {{0.2}}, uint8 zero = {{0}}>
    {{ floats = DequantizeLinear(x, scale, zero)
       absolute = Abs(floats)
       y = QuantizeLinear(absolute, other, zero) }}"""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "convert.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        operators = profile(path, threads=threads)
    return _total_ms(operators) / (4 * side * side)


def _total_ms(operators: Iterable[Operator]) -> float:
    return sum(operator.ms for operator in operators)


def _owners(path: Path) -> dict[str, str]:
    """Maps every node, by its name and its outputs', to the layer it belongs to or follows."""
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    writers = {output: node for node in graph.node for output in node.output}
    owners: dict[str, str] = {}
    for node in graph.node:
        owner = next((owners[value] for value in node.input if value in owners), None)
        if node.op_type in WITH_WEIGHTS:
            weight = node.input[1]
            weight = weight if weight in stored else writers[weight].input[0]
            owner = weight.rpartition(".")[0].removeprefix(NETWORK_PREFIX)
        if owner is not None:
            owners |= dict.fromkeys([node.name, *node.output], owner)
    return owners
