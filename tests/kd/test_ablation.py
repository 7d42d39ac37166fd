"""New networks, for the same time."""

import functools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.architectures.build import build
from compress.cli.main import main
from compress.data.dataset import Data
from compress.kd.ablation import ablate, epochs_within
from compress.kd.context import Context
from compress.kd.training import KDResult
from compress.measure.config import MeasureConfig
from compress.train.config import TrainConfig
from tests.conftest import RUN, settled, student_spec
from tests.train.test_diagnosis import ROWS


@pytest.mark.parametrize(
    ("seconds", "first", "second", "epochs"),
    [
        (100, 2, 2, 50),
        (100, 52, 2, 25),  # 50 seconds of compiling, once
        (100, 1, 2, 50),  # the first was no slower
        (10, 40, 2, 1),  # less time than compiling takes
    ],
)
def test_compiling_counts_once(seconds: float, first: float, second: float, epochs: float) -> None:
    assert epochs_within(seconds, first, second) == epochs


def test_the_new_network_takes_its_share_of_the_time(digits: Data, tmp_path: Path) -> None:
    context = Context(
        data=digits, seed=0, measure=MeasureConfig(), folder=tmp_path, store=tmp_path, teachers=()
    )
    schedule = TrainConfig(epochs=9, batch_size=512, precision="fp32", patience=1)
    kd = KDResult(history=list(ROWS), findings=[], teacher_seconds=0.5)
    assert (kd.student_seconds, kd.seconds) == (3.0, 3.5)
    spec = student_spec(digits)
    trained = settled(spec, digits.train)
    make = functools.partial(build, spec)
    alone = ablate(trained, make, spec, schedule, context, seconds=kd.seconds)
    rows = (tmp_path / "alone" / "history.jsonl").read_text().splitlines()
    assert alone.epochs == len(rows)
    assert alone.seconds == pytest.approx(sum(json.loads(row)["seconds"] for row in rows))
    assert alone.gain.points < -50  # against an untrained network
    low, high = alone.top1_ci95
    assert 0 <= low <= alone.top1 <= high <= 100
    assert (tmp_path / "alone" / "model.onnx").is_file()


def test_the_report_says_whether_distillation_helped(run_copy: Path) -> None:
    command = [*RUN, "--out", str(run_copy)]
    command += ["--set", "distill.ablation=true", "--until", "distill"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    (_, report) = json.loads((run_copy / "report.json").read_text())["stages"][:2]
    alone, epochs = report["result"]["alone"], report["result"]["epochs"]
    assert alone["top1"] > 80
    assert alone["epochs"] > epochs / 2
    assert f"; {alone['top1']:.2f} % after" in result.output
    assert not list(run_copy.rglob("training.pt"))
    line = f"{report['top1']:.2f} % with the teacher, {epochs} epochs in"
    assert line in (run_copy / "1-distill" / "report.md").read_text()
    assert result.output.count(line) == 2  # when the stage ends, and below the run's table
