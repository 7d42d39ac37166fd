"""What each layer costs in ONNX Runtime on this machine, in float and in int8."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from compress.cache import spread_of
from compress.measure.profile import Operator, profile

PROFILE_ROUNDS = 4
"""The files take turns, so that noise hits all alike."""
WITH_WEIGHTS = ("Conv", "Gemm")
LAYER_KINDS = {"Conv", "FusedConv", "QLinearConv", "Gemm", "FusedGemm", "QGemm"}
"""What those become in the optimized graph."""
INSERTED = re.compile(r"(_token_\d+|_nchwc)*$")
"""What ONNX Runtime's optimizer appends to the names of nodes."""
NETWORK_PREFIX = "network."
"""A float file is exported from a `Classifier`, whose layers are below this name."""


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Milliseconds of one run, with the operators without weights that follow the layer."""

    float_ms: float
    int8_ms: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured of one network's shape on this machine."""

    costs: Mapping[str, LayerCost]
    """By layer."""
    float_layers: tuple[str, ...] = ()
    """Proposed to stay in float; empty if all or none are faster so."""
    speedup_ci95: tuple[float, float] = (1.0, 1.0)
    """Of the file with those layers in float against the one with all in int8."""

    @property
    def mixing_pays(self) -> bool:
        """Whether the mixed file is faster beyond noise."""
        return self.speedup_ci95[0] > 1


def layer_costs(
    float_file: Path, int8_file: Path, *, threads: int
) -> tuple[dict[str, LayerCost], float]:
    """Profiles both files, layer by layer, batch 1.

    Args:
        float_file: an exported network.
        int8_file: the same network, all layers in int8.
        threads: of ONNX Runtime's operators.

    Returns:
        Costs by layer name, in the order of execution; and the spread of the rounds' sums.
    """
    rounds: dict[Path, list[dict[str, float]]] = {float_file: [], int8_file: []}
    for _ in range(PROFILE_ROUNDS):
        for path, found in rounds.items():
            layers = operators_by_layer(path, threads=threads)
            found.append({name: sum(one.ms for one in layers[name]) for name in layers})
    times = {
        path: {
            name: statistics.median(one.get(name, 0.0) for one in found)
            for name in dict.fromkeys(_owners(path).values())
        }
        for path, found in rounds.items()
    }
    costs = {
        name: LayerCost(float_ms=times[float_file].get(name, ms), int8_ms=ms)
        for name, ms in times[int8_file].items()
    }
    sums = [[sum(one.values()) for one in found] for found in rounds.values()]
    return costs, max(spread_of(one) for one in sums)


def cheapest_float_layers(
    costs: Mapping[str, LayerCost], borders: Sequence[tuple[str, str, float]]
) -> tuple[str, ...]:
    """Returns the layers that are better left in float so that the whole is fastest.

    A layer costs what it costs in its arithmetic; where a value goes from one arithmetic to the
    other it must be converted. The cheapest assignment is a minimum cut between a source (int8)
    and a sink (float).

    Args:
        costs: by layer.
        borders: pairs of layers of which the second reads the first's output, and the
            milliseconds of converting it.
    """
    names = list(costs)
    place = {name: number for number, name in enumerate(names)}
    source, sink = len(names), len(names) + 1
    capacity: dict[tuple[int, int], int] = defaultdict(int)
    for name, cost in costs.items():
        # Cut from the sink's side a layer is int8 and pays for it, and the other way round.
        capacity[source, place[name]] += _nanoseconds(cost.float_ms)
        capacity[place[name], sink] += _nanoseconds(cost.int8_ms)
    for first, second, ms in borders:
        if first in place and second in place:
            capacity[place[first], place[second]] += _nanoseconds(ms)
            capacity[place[second], place[first]] += _nanoseconds(ms)
    rows, columns = zip(*capacity, strict=True)
    graph = csr_matrix(
        (np.array(list(capacity.values()), dtype=np.int32), (rows, columns)),
        shape=(sink + 1, sink + 1),
    )
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = set(breadth_first_order(residual, source, return_predecessors=False).tolist())
    return tuple(name for name in names if place[name] not in reached)


def layer_borders(int8_file: Path, *, threads: int) -> list[tuple[str, str, float]]:
    """Returns which layers read which layers' outputs, and what converting those would cost.

    A conversion is taken to cost a share of the producing layer's traffic: its elements times the
    time that DequantizeLinear and QuantizeLinear take for one on this machine.
    """
    proto = onnx.shape_inference.infer_shapes(onnx.load(int8_file))
    shapes = {
        value.name: [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        for value in proto.graph.value_info
    }
    owners = _owners(int8_file)
    per_element = _conversion_cost(threads)
    borders = []
    for node in proto.graph.node:
        reader = owners.get(node.output[0])
        for value in node.input:
            writer = owners.get(value)
            if writer and reader and writer != reader:
                elements = int(np.prod(shapes.get(value, [0])))
                borders.append((writer, reader, elements * per_element))
    return borders


def _conversion_cost(threads: int) -> float:
    """Returns the milliseconds that one element takes through QuantizeLinear, there and back."""
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
    return sum(operator.ms for operator in operators) / (4 * side * side)


def _nanoseconds(ms: float) -> int:
    return round(1e6 * ms)


def _owners(path: Path) -> dict[str, str]:
    """Returns the layer that every node, by its name and its output's, belongs to or follows."""
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    owners: dict[str, str] = {}
    for node in graph.node:
        owner = next((owners[value] for value in node.input if value in owners), None)
        if node.op_type in WITH_WEIGHTS:
            weight = node.input[1]
            weight = weight if weight in stored else made_by[weight].input[0]
            owner = weight.rpartition(".")[0].removeprefix(NETWORK_PREFIX)
        if owner is not None:
            owners |= dict.fromkeys([node.name, *node.output], owner)
    return owners


def operators_by_layer(path: Path, *, threads: int) -> dict[str, list[Operator]]:
    """Profiles a file; returns each layer's operator and those without weights that follow it."""
    owners = _owners(path)
    found: dict[str, list[Operator]] = defaultdict(list)
    for operator in profile(path, threads=threads):
        owner = owners.get(operator.name) or owners.get(plain_name(operator.name))
        if owner is not None:
            found[owner].append(operator)
    return found


def plain_name(name: str) -> str:
    """Returns a node's name as it was before ONNX Runtime's optimizer."""
    return INSERTED.sub("", name)
