from pathlib import Path

from compress.cache import measuring_for
from compress.checkpoint import load_checkpoint
from compress.data.load import Data
from compress.int8.graph import layers_of
from compress.quantize.calibration import calibrate, fit_to_cpu, plan_of
from compress.quantize.config import QuantizeConfig
from compress.quantize.layer_timing import time_layers
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
        mixed = time_layers(found, plan, checkpoint, context)
        assert set(mixed.costs) == set(layers_of(found.lowered(equalized=False)))
        assert all(cost.float_ms > 0 and cost.int8_ms > 0 for cost in mixed.costs.values())
        assert len(mixed.float_layers) < len(mixed.costs)
        if not mixed.float_layers:
            assert mixed.speedup_ci95 == (1.0, 1.0)
        assert not list(tmp_path.glob("*.onnx"))
        # What is cached needs no network: the second call must not export anything.
        assert time_layers(found, plan, checkpoint, context) == mixed
