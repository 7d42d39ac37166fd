import itertools
import random
from pathlib import Path

import pytest

from compress.data.load import Data
from compress.int8.placement import freeze, layers_of
from compress.int8.speed import LayerCost, cheapest_float_layers, layer_borders, layer_costs
from compress.onnx_file import export_onnx
from tests.conftest import settled, torchvision_spec
from tests.int8.test_placement import PLAN, calibration


def cost_of(
    float_layers: frozenset[str],
    costs: dict[str, LayerCost],
    borders: list[tuple[str, str, float]],
) -> float:
    layers = sum(
        cost.float_ms if name in float_layers else cost.int8_ms for name, cost in costs.items()
    )
    crossed = (ms for one, other, ms in borders if (one in float_layers) != (other in float_layers))
    return layers + sum(crossed)


@pytest.mark.parametrize("seed", range(8))
def test_the_minimum_cut_is_the_best_of_all_assignments(seed: int) -> None:
    generator = random.Random(seed)
    names = [f"layer{number}" for number in range(9)]
    costs = {
        name: LayerCost(float_ms=generator.random(), int8_ms=generator.random()) for name in names
    }
    edges = [*itertools.pairwise(names), (names[0], names[4]), (names[3], names[8])]
    borders = [(one, other, 0.4 * generator.random()) for one, other in edges]
    found = frozenset(cheapest_float_layers(costs, borders))
    best = min(
        cost_of(frozenset(chosen), costs, borders)
        for size in range(len(names) + 1)
        for chosen in itertools.combinations(names, size)
    )
    assert cost_of(found, costs, borders) == pytest.approx(best, abs=1e-5)


def test_every_layer_of_a_real_network_has_its_time(digits: Data, tmp_path: Path) -> None:
    spec = torchvision_spec("mobilenet_v3_small", digits)
    model = settled(spec, digits.train)
    export_onnx(model, spec, tmp_path / "float.onnx", digest="", stage="teacher")
    quantized = freeze(calibration(model, digits, n=64).quantize(PLAN))
    export_onnx(quantized, spec, tmp_path / "int8.onnx", digest="", stage="quantize")
    costs, spread = layer_costs(tmp_path / "float.onnx", tmp_path / "int8.onnx", threads=1)
    assert spread >= 0
    names = list(layers_of(quantized))
    assert sorted(costs) == sorted(names)
    assert all(cost.float_ms > 0 and cost.int8_ms > 0 for cost in costs.values())
    borders = layer_borders(tmp_path / "int8.onnx", threads=1)
    assert {name for border in borders for name in border[:2]} == set(names)
    assert all(ms > 0 for _, _, ms in borders)
