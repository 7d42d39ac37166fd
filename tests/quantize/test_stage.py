"""The stage, on the finished run of the session."""

import json
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from compress.cli.main import main
from compress.data.dataset import Data
from compress.quantize import stage
from compress.quantize.config import QuantizeConfig
from compress.quantize.ptq_search import Trials
from compress.run.lookup import read_stage_report
from tests.int8.helpers import PLAN, trained_student
from tests.quantize.helpers import context_for


def quantize(run: Path, *options: str) -> Path:
    out = run / "own"
    command = ["quantize", "--in", str(run / "2-prune"), "--out", str(out), "--calib", "256"]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 0, result.output
    return out


def test_the_report_lists_the_attempts(run_copy: Path) -> None:
    report = read_stage_report(quantize(run_copy, "--reduce-range", "--max-drop", "100"))
    result = report.result
    assert result.method == "ptq"
    assert result.attempts[0].name == "mse ranges"
    assert result.calibration_images == 256
    assert result.without_vnni.layers == ()
    assert result.without_vnni.top1 == result.without_vnni.top1_saturated


def test_what_qat_trains_is_what_ships(run_copy: Path) -> None:
    out = quantize(run_copy, "--method", "qat", "--epochs", "1", "--min-steps", "30")
    report = read_stage_report(out)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert report.result.method == "qat"
    assert report.result.attempts[-1].drop < 3.0
    result = CliRunner().invoke(main, ["evaluate", str(out), "--split", "validation"])
    scored = float(result.output.split("top-1 ")[1].split()[0])
    assert abs(scored - history[-1]["validation_top1"]) <= 1.0  # one image in 116


def test_reduced_range_keeps_its_layers_when_trained(run_copy: Path) -> None:
    options = ("--reduce-range", "--method", "qat", "--epochs", "1", "--min-steps", "5")
    result = read_stage_report(quantize(run_copy, *options)).result
    assert result.method == "qat"
    assert result.reduced_layers
    assert not set(result.without_vnni.layers) & set(result.reduced_layers)


DECISIONS: list[tuple[Literal["auto", "ptq", "qat"], float, float, bool, bool]] = [
    ("ptq", 5.0, 0.0, False, False),
    ("auto", 0.25, 0.0, False, False),
    ("auto", 0.4, 0.1, True, True),
    ("auto", 0.4, 0.5, True, False),
    ("qat", 0.0, 0.5, True, True),
]
"""Method, drop before and after training, whether it trains, and whether the result is kept."""


@pytest.mark.parametrize("decision", DECISIONS)
def test_auto_trains_only_what_lost_too_much_and_keeps_what_helped(
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    decision: tuple[Literal["auto", "ptq", "qat"], float, float, bool, bool],
) -> None:
    """Only the decision: training itself is replaced by a note that it ran."""
    method, before, after, trains, keeps = decision
    trained: list[object] = []
    monkeypatch.setattr(stage, "train_quantized", lambda model, *_: trained.append(model))
    scores = iter([(0.0, 95.0), (0.0, 95.0 - before), (0.0, 95.0 - after)])
    _, found = trained_student()
    trials = Trials(found, lambda _: next(scores))
    best = trials.quantize("first", PLAN)
    config = QuantizeConfig(method=method)
    kept = stage._train(trials, best, config, context_for(digits, tmp_path))
    assert len(trained) == trains
    assert [kept.model if kept else None] == (trained if keeps else [None])
