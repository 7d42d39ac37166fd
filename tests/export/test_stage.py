import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from compress.checkpoint import FLOAT_FILE, INT8_FILE, MODEL_FILE
from compress.cli.main import main
from compress.export.config import ExportConfig
from compress.export.stage import judge
from compress.run.lookup import read_stage_report


@pytest.mark.parametrize(
    ("drop", "speedup_ci95", "ship", "reason"),
    [
        (0.2, (2.9, 3.1), INT8_FILE, "int8 pays off"),
        (0.2, (0.97, 1.03), INT8_FILE, "not significantly faster"),
        (0.2, (0.90, 0.98), FLOAT_FILE, "slower"),
        (1.5, (2.9, 3.1), FLOAT_FILE, "loses 1.50 points, more than max_drop = 1"),
        (1.0, (2.9, 3.1), INT8_FILE, "int8 pays off"),
    ],
)
def test_int8_ships_unless_it_loses_too_much_or_is_slower(
    drop: float, speedup_ci95: tuple[float, float], ship: str, reason: str
) -> None:
    verdict = judge(drop, 1.0, speedup_ci95)
    assert verdict.ship == ship
    assert reason in verdict.reason


def test_the_drop_is_what_int8_loses(finished_run: Path) -> None:
    reason = read_stage_report(finished_run / "4-export").result.reason
    change = read_stage_report(finished_run / "4-export").result.change
    assert f"top-1 {change.points:+.2f} points" in reason
    assert ("int8 loses" in reason) == (-change.points > ExportConfig().max_drop)


def export(run: Path) -> Result:
    command = ["export", "--in", str(run / "3-quantize"), "--out", str(run / "own")]
    return CliRunner().invoke(main, command)


def test_the_files_are_those_that_were_measured(run_copy: Path) -> None:
    exported = run_copy / "4-export"
    for name, stage in ((FLOAT_FILE, "2-prune"), (INT8_FILE, "3-quantize")):
        assert (exported / name).read_bytes() == (run_copy / stage / MODEL_FILE).read_bytes()


def test_a_file_of_another_checkpoint_is_refused(run_copy: Path) -> None:
    shutil.copy(run_copy / "1-distill" / MODEL_FILE, run_copy / "2-prune" / MODEL_FILE)
    result = export(run_copy)
    assert result.exit_code == 2
    assert f"{run_copy / '2-prune' / MODEL_FILE} is missing or not from this checkpoint" in (
        result.output
    )
    assert not (run_copy / "own").exists()


def test_a_file_that_computes_something_else_is_reported(run_copy: Path) -> None:
    path = run_copy / "2-prune" / MODEL_FILE
    proto = onnx.load(path)
    weights = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = np.random.default_rng(0).permutation(
        np.frombuffer(weights.raw_data, np.float32)
    ).tobytes()  # fmt: skip
    onnx.save(proto, path)
    result = export(run_copy)
    assert result.exit_code == 0, result.output
    (finding,) = read_stage_report(run_copy / "own").findings
    assert "model-float.onnx and torch agree on" in finding
    assert finding in (run_copy / "own" / "report.md").read_text()


def test_without_its_float_checkpoint_the_int8_file_ships_alone(run_copy: Path) -> None:
    shutil.rmtree(run_copy / "2-prune")
    result = export(run_copy)
    assert result.exit_code == 0, result.output
    assert "exporting the int8 file only" in result.output
    exported = read_stage_report(run_copy / "own").result
    assert (exported.files, exported.ship) == ((INT8_FILE,), INT8_FILE)
