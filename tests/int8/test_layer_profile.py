import itertools
import random
from pathlib import Path

import pytest

from compress.data.load import Data
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.layer_profile import Edge, LayerCost, layer_costs, layer_edges
from compress.int8.mixed_precision import choose_float_layers
from compress.onnx_file import export_onnx
from tests.conftest import settled, torchvision_spec
from tests.int8.helpers import PLAN, calibration


def cost_of(
    float_layers: frozenset[str],
    costs: dict[str, LayerCost],
    edges: list[Edge],
) -> float:
    layers = sum(
        cost.float_ms if name in float_layers else cost.int8_ms for name, cost in costs.items()
    )
    crossed = (
        edge.conversion_ms
        for edge in edges
        if (edge.writer in float_layers) != (edge.reader in float_layers)
    )
    return layers + sum(crossed)


@pytest.mark.parametrize("seed", range(8))
def test_the_minimum_cut_is_the_best_of_all_assignments(seed: int) -> None:
    generator = random.Random(seed)
    names = [f"layer{number}" for number in range(9)]
    costs = {
        name: LayerCost(float_ms=generator.random(), int8_ms=generator.random()) for name in names
    }
    pairs = [*itertools.pairwise(names), (names[0], names[4]), (names[3], names[8])]
    edges = [
        Edge(writer=one, reader=other, conversion_ms=0.4 * generator.random())
        for one, other in pairs
    ]
    found = frozenset(choose_float_layers(costs, edges))
    best = min(
        cost_of(frozenset(chosen), costs, edges)
        for size in range(len(names) + 1)
        for chosen in itertools.combinations(names, size)
    )
    assert cost_of(found, costs, edges) == pytest.approx(best, abs=1e-5)


def test_every_layer_of_a_real_network_has_its_time(digits: Data, tmp_path: Path) -> None:
    spec = torchvision_spec("mobilenet_v3_small", digits)
    model = settled(spec, digits.train)
    export_onnx(model, spec, tmp_path / "float.onnx", digest="", stage="teacher")
    quantized = convert(calibration(model, digits, n=64).quantize(PLAN))
    export_onnx(quantized, spec, tmp_path / "int8.onnx", digest="", stage="quantize")
    costs, spread = layer_costs(tmp_path / "float.onnx", tmp_path / "int8.onnx", threads=1)
    assert spread >= 0
    names = list(layers_of(quantized))
    assert sorted(costs) == sorted(names)
    assert all(cost.float_ms > 0 and cost.int8_ms > 0 for cost in costs.values())
    edges = layer_edges(tmp_path / "int8.onnx", threads=1)
    assert {name for edge in edges for name in (edge.writer, edge.reader)} == set(names)
    assert all(edge.conversion_ms > 0 for edge in edges)
