"""The stage on the digits run of the session."""

import json
import math
import re
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from compress.cache import MEASURED, now
from compress.checkpoint import load_checkpoint
from compress.cli.main import main
from compress.files import cache_folder
from compress.int8.restore import load_model
from compress.measure.results import StageReport, read_history
from compress.run.lookup import read_stage_report

QUICK = ("--iterations", "1", "--epochs", "0", "--min-steps", "0")


def prune(run: Path, *options: str) -> Result:
    command = ["prune", "--in", str(run / "1-distill"), "--out", str(run / "own"), *QUICK]
    return CliRunner().invoke(main, [*command, *options])


def pruned(run: Path, *options: str) -> StageReport:
    result = prune(run, *options)
    assert result.exit_code == 0, result.output
    return read_stage_report(run / "own")


def test_the_budget_is_met_as_measured(run_copy: Path) -> None:
    report = pruned(run_copy, "--latency-ratio", "0.7")
    (iteration,) = report.result.iterations
    assert iteration.target_ms == pytest.approx(0.7 * report.result.unpruned_ms)
    assert iteration.measured_ms <= 1.05 * iteration.target_ms
    assert iteration.predicted_ms == pytest.approx(iteration.measured_ms, rel=1)
    assert iteration.top1_raw <= iteration.top1_trained + 5
    for width in report.result.widths:
        assert width.after <= width.before
        unchanged = width.after in (0, width.before)
        assert unchanged or width.after % 8 == 0
    text = (run_copy / "own" / "report.md").read_text()
    assert "| target ms | predicted ms | measured ms |" in text
    assert f"| {report.result.widths[0].layer} |" in text
    assert (run_copy / "own" / "report.html").read_text().count("<svg") == 1
    model = load_model(load_checkpoint(run_copy / "own"))
    shape = {name: len(p) for name, p in model.named_parameters() if p.ndim > 1}
    assert [width.after for width in report.result.widths if width.after] == list(shape.values())


@pytest.mark.slow
def test_the_shape_that_ships_is_trained_from_scratch(run_copy: Path) -> None:
    report = pruned(run_copy, "--latency-ratio", "0.7", "--ablation", "--epochs", "4")
    new = report.result.from_scratch
    distilled = read_history(run_copy / "1-distill")
    assert distilled is not None
    assert new.alone.available_seconds > sum(row["seconds"] for row in distilled)
    for name, trained in (("alone", new.alone), ("taught", new.taught)):
        assert trained.top1 > 80
        assert 0.5 < trained.seconds / trained.available_seconds < 1.5
        (other,) = (run_copy / "own" / name).glob("*.onnx")
        files = (other, run_copy / "own" / "model.onnx")
        shapes = [
            [list(constant.dims) for constant in onnx.load(path).graph.initializer]
            for path in files
        ]
        assert shapes[0] == shapes[1]
    text = (run_copy / "own" / "report.md").read_text()
    assert f"{new.alone.top1:.2f} % after" in text
    assert "the pruned network from scratch" in text


def test_sparse_epochs_come_before_the_cut(run_copy: Path) -> None:
    result = prune(run_copy, "--latency-ratio", "0.7", "--sparse-epochs", "1")
    assert result.exit_code == 0, result.output
    sparse, cut = result.output.index("sparse epoch 1/1: "), result.output.index("candidate 1: ")
    assert sparse < cut


def test_what_was_measured_before_is_told_and_dropped_when_asked(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = shutil.copytree(cache_folder() / MEASURED, tmp_path / "cache" / MEASURED)
    monkeypatch.setenv("COMPRESS_CACHE", str(measured.parent))  # the others keep theirs
    monkeypatch.setattr("compress.cache.STEADY", math.inf)
    start = now()
    macs_decide = ("--latency-ratio", "1", "--macs-ratio", "0.6")
    again = pruned(run_copy, *macs_decide)  # the finished run has measured the same layers
    table = {row.what: row for row in again.measurements}["layer latencies"]
    assert table.cached
    assert table.count > 10
    assert table.measured < start
    text = (run_copy / "own" / "report.md").read_text()
    assert "## Measurements" in text
    assert f"| layer latencies | {table.measured} |" in text
    anew = pruned(run_copy, *macs_decide, "--remeasure")  # was done; runs again
    for row in anew.measurements:
        assert (row.cached, row.measured >= start) == (False, True)
    assert not (run_copy / "own" / MEASURED).exists()


def test_an_impossible_budget_names_the_least_and_what_was_asked(run_copy: Path) -> None:
    asked = []
    for steps in ("1", "2"):  # with two, the first cut's own limit is above what was asked
        result = prune(run_copy, "--latency-ratio", "0.05", "--iterations", steps)
        assert result.exit_code == 2
        found = re.search(
            r"cannot meet the budget; the best candidate has latency 0\.\d+ ms \(target (.*?) ms\)",
            result.output,
        )
        assert found, result.output
        asked.append(float(found[1]))
    assert asked[1] == pytest.approx(asked[0], rel=0.5)


def test_the_default_budget_gives_way(run_copy: Path) -> None:
    """Nobody asked for it, so a run goes on with the network as it is and says so."""
    report = pruned(run_copy, "--min-channels-ratio", "1", "--no-remove-blocks")
    (finding,) = report.findings
    assert (
        "0 of 1 default iterations done; pruning cannot meet the budget; the best candidate has"
        in finding
    )
    before = read_stage_report(run_copy / "1-distill")
    assert (report.parameters, report.top1) == (before.parameters, before.top1)


def test_other_budgets_are_met_too(run_copy: Path) -> None:
    before = read_stage_report(run_copy / "1-distill")
    options = ("--latency-ratio", "1", "--macs-ratio", "0.4", "--size-ratio", "0.5")
    report = pruned(run_copy, *options, "--target-precision", "float", "--no-remove-blocks")
    assert report.macs <= 0.4 * 1.05 * before.macs
    assert report.size_bytes <= 0.5 * 1.05 * before.size_bytes
    assert report.result.removed_blocks == ()


@pytest.mark.slow
def test_what_was_pruned_can_be_pruned_again(run_copy: Path) -> None:
    pruned(run_copy, "--latency-ratio", "0.8", "--iterations", "2")
    assert not list((run_copy / "own").rglob("training.pt"))
    command = ["prune", "--in", str(run_copy / "own"), "--out", str(run_copy / "again"), *QUICK]
    result = CliRunner().invoke(main, [*command, "--latency-ratio", "0.9"])
    assert result.exit_code == 0, result.output
    load_model(load_checkpoint(run_copy / "again"))
    text = json.loads((run_copy / "again" / "checkpoint.json").read_text())
    assert [step["stage"] for step in text["lineage"]][-2:] == ["prune", "prune"]
