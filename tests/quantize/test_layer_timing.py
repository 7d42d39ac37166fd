import itertools
import random
from pathlib import Path

import pytest

from compress.cache import measuring_for
from compress.checkpoint import load_checkpoint
from compress.data.dataset import Data
from compress.int8.graph import layers_of
from compress.int8.layer_profile import Edge, LayerCost
from compress.int8.ptq import fit_to_cpu
from compress.quantize.calibration import calibrate, plan_of
from compress.quantize.config import QuantizeConfig
from compress.quantize.layer_timing import MixedPrecision, choose_float_layers, time_layers
from tests.quantize.helpers import context_for


def test_layers_are_timed_once_and_no_file_is_left(
    finished_run: Path, digits: Data, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(finished_run / "2-prune")
    config = QuantizeConfig(calib=32)
    context = context_for(digits, tmp_path)
    found = calibrate(checkpoint, config, context)
    plan = fit_to_cpu(plan_of(config), found)
    with measuring_for(tmp_path):
        mixed = time_layers(found, plan, checkpoint, context.measure)
        assert set(mixed.costs) == set(layers_of(found.lowered(equalized=False)))
        assert all(cost.float_ms > 0 and cost.int8_ms > 0 for cost in mixed.costs.values())
        assert len(mixed.float_layers) < len(mixed.costs)
        if not mixed.float_layers:
            assert mixed.speedup_ci95 == (1.0, 1.0)
        assert not list(tmp_path.glob("*.onnx"))
        # What is cached needs no network: the second call must not export anything.
        assert time_layers(found, plan, checkpoint, context.measure) == mixed


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


def test_a_layer_that_is_slower_in_int8_stays_in_float_unless_converting_costs_more() -> None:
    costs = {
        "first": LayerCost(float_ms=2.0, int8_ms=1.0),
        "second": LayerCost(float_ms=1.0, int8_ms=1.5),
    }
    cheap = [Edge(writer="first", reader="second", conversion_ms=0.4)]
    dear = [Edge(writer="first", reader="second", conversion_ms=0.6)]
    assert choose_float_layers(costs, cheap) == ("second",)
    assert choose_float_layers(costs, dear) == ()


@pytest.mark.parametrize(
    ("interval", "faster"), [((1.01, 1.2), True), ((1.0, 1.2), False), ((0.9, 0.95), False)]
)
def test_a_mixed_file_is_faster_only_beyond_noise(
    interval: tuple[float, float], faster: bool
) -> None:
    mixed = MixedPrecision(costs={}, float_layers=("a",), speedup_ci95=interval)
    assert mixed.is_faster is faster
