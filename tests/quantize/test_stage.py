"""The stage and its policy, on the digits run of the session."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from compress.checkpoint import load_checkpoint
from compress.cli.main import main
from compress.data.load import Data
from compress.int8.graph import layers_of
from compress.int8.layer_profile import LayerCost
from compress.int8.ptq import Plan
from compress.int8.quantizer import ActivationQuantizer
from compress.int8.restore import load_model
from compress.measure.results import read_stage_report
from compress.quantize.config import QuantizeConfig
from compress.quantize.ptq_search import Trials, search
from compress.quantize.qat import enable_learned_scales
from compress.train.config import TrainConfig
from compress.train.epoch import label_loss
from compress.train.evaluate import evaluate
from compress.train.loop import train
from tests.conftest import student_spec
from tests.int8.helpers import briefly_trained, calibration

PLAN = Plan(observer="minmax", weights="max")


def quantize(run: Path, *options: str) -> Path:
    out = run / "own"
    command = ["quantize", "--in", str(run / "2-prune"), "--out", str(out), "--calib", "256"]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 0, result.output
    return out


def test_auto_stops_at_what_is_good_enough(digits: Data) -> None:
    found = calibration(briefly_trained(student_spec(digits), digits), digits)
    config = QuantizeConfig(max_drop=100.0)
    trials = Trials(found, lambda net: evaluate(net, digits.validation))
    search(trials, PLAN, config, {})
    tried = [attempt.name for attempt in trials.attempts]
    assert tried == ["minmax ranges", "with bias correction"]


def test_auto_corrects_and_falls_back_while_too_much_is_lost(digits: Data) -> None:
    """A score that dislikes one layer's integers: corrections cannot help, floats can."""
    found = calibration(briefly_trained(student_spec(digits), digits), digits)
    names = list(layers_of(found.lowered(equalized=False)))
    culprit = names[3]
    costs = {name: LayerCost(float_ms=1.0, int8_ms=0.5) for name in names}

    def score(network: torch.fx.GraphModule) -> tuple[float, float]:
        layer = layers_of(network)[culprit]
        harmed = layer.is_int8 and layer.mode == "fake_quantize"
        loss, top1 = evaluate(network, digits.validation)
        return loss + 5.0 * harmed, top1 - 50.0 * harmed

    # The float network is scored with all its layers in float.
    trials = Trials(found, score)
    best = search(trials, PLAN, QuantizeConfig(max_drop=5.0), costs)
    tried = [attempt.name for attempt in trials.attempts]
    assert tried[:4] == [
        "minmax ranges",
        "with bias correction",
        "with equalization",
        "with AdaRound",
    ]
    assert tried[4] == f"with {culprit} in float"
    assert best.plan.layout.float_layers == (culprit,)
    assert best.attempt.drop <= 5.0


def test_observer_auto_keeps_the_best(digits: Data) -> None:
    found = calibration(briefly_trained(student_spec(digits), digits), digits)
    config = QuantizeConfig(observer="auto", method="ptq")
    trials = Trials(found, lambda net: evaluate(net, digits.validation))
    best = search(trials, PLAN, config, {})
    assert len(trials.attempts) == 5
    assert best.attempt == min(trials.attempts, key=lambda tried: (tried.drop, tried.loss))
    assert best.attempt.name == f"{best.plan.observer} ranges"


def test_the_report_shows_the_path_taken(run_copy: Path) -> None:
    report = read_stage_report(quantize(run_copy, "--reduce-range", "--max-drop", "100"))
    details = report.details
    assert details["method"] == "ptq"
    assert details["attempts"][0]["name"] == "mse ranges"
    assert {"layers", "top1", "top1_saturated"} <= set(details["without_vnni"])
    assert isinstance(details["reduced_layers"], list)


def test_what_qat_trains_is_what_ships(run_copy: Path) -> None:
    out = quantize(run_copy, "--method", "qat", "--epochs", "1", "--min-steps", "30")
    report = read_stage_report(out)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert report.details["method"] == "qat"
    assert report.details["attempts"][-1]["drop"] < 3.0
    result = CliRunner().invoke(main, ["evaluate", str(out), "--split", "validation"])
    scored = float(result.output.split("top-1 ")[1].split()[0])
    assert abs(scored - history[-1]["validation_top1"]) <= 1.0  # one image in 116


def test_a_learned_scale_ships_within_its_bounds() -> None:
    """Training sees a scale clamped to what Relu6 allows; the file must not see another."""
    quantizer = ActivationQuantizer(lowest=0, highest=6)
    quantizer.set_range(0, 6)
    quantizer.scale.requires_grad_()
    quantizer.scale.data.fill_(1.0)
    x = torch.linspace(-1, 300, 1000)[None]
    trained = quantizer(x).detach()
    quantizer.convert()
    assert quantizer.scale == pytest.approx(6 / 255)
    assert torch.allclose(quantizer(x), trained)


def test_reduced_range_keeps_its_layers_when_trained(run_copy: Path) -> None:
    options = ("--reduce-range", "--method", "qat", "--epochs", "1", "--min-steps", "5")
    details = read_stage_report(quantize(run_copy, *options)).details
    assert details["method"] == "qat"
    assert details["reduced_layers"]
    assert not set(details["without_vnni"]["layers"]) & set(details["reduced_layers"])


def test_qat_learns_its_scales(digits: Data, tmp_path: Path) -> None:
    model = briefly_trained(student_spec(digits), digits)
    quantized = calibration(model, digits).quantize(PLAN)
    enable_learned_scales(quantized)
    before = {name: scale.clone() for name, scale in quantized.named_parameters() if scale.ndim < 2}
    config = TrainConfig(epochs=1, min_steps=0, batch_size=64, lr=0.003, precision="fp32")
    loss = label_loss(0.0)
    train(quantized, digits, config, loss=loss, seed=0, folder=tmp_path, title="qat")
    after = dict(quantized.named_parameters())
    moved = [name for name, scale in before.items() if not torch.equal(scale, after[name])]
    assert len(moved) > 0.9 * len(before)


DDP = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from compress.checkpoint import load_checkpoint
from compress.int8.conversion import convert
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from compress.quantize.qat import enable_learned_scales
from compress.int8.restore import load_model
from compress.run.single_stage import data_of
from compress.train.config import TrainConfig
from compress.train.epoch import label_loss
from compress.train.loop import train
checkpoint = load_checkpoint(Path(sys.argv[1]))
data = data_of(checkpoint)
calibration = Calibration(
    lower(load_model(checkpoint)), lambda: (b.images for b in data.train.batches(64))
)
quantized = calibration.quantize(Plan(observer="minmax", weights="mse"))
enable_learned_scales(quantized)
folder = Path(sys.argv[2])
config = TrainConfig(
    epochs=int(sys.argv[3]), min_steps=0, batch_size=64, lr=0.003, precision="fp32"
)
history = train(
    quantized, data, config, loss=label_loss(0.0), seed=0, folder=folder, title="qat"
)
digest = sum(float(p.double().sum()) for p in quantized.parameters())
sums = [None] * dist.get_world_size()
dist.all_gather_object(sums, digest)
if dist.get_rank() == 0:
    assert len(sums) == 2 and sums[0] == sums[1], sums
    from compress.onnx_file import export_onnx
    export_onnx(convert(quantized), checkpoint.spec, folder / "qat.onnx", digest="", stage="qat")
    print("epochs", len(history), "top1", history[-1].validation_top1)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_qat_trains_in_two_processes_resumes_and_exports(
    finished_run: Path, tmp_path: Path
) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(DDP)

    def torchrun(epochs: int) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        arguments = [str(script), str(finished_run / "2-prune"), str(tmp_path), str(epochs)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "epochs 2" in torchrun(2)
    rows = (tmp_path / "history.jsonl").read_text()
    assert "epochs 3" in torchrun(3)  # goes on after the second
    assert (tmp_path / "history.jsonl").read_text().startswith(rows)
    assert (tmp_path / "qat.onnx").is_file()


def test_sensitivity_has_a_row_for_each_layer(run_copy: Path) -> None:
    folder = run_copy / "2-prune"
    command = ["sensitivity", str(folder), "--images", "50", "--calib", "64"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "sensitivity.json").read_text())
    model = load_model(load_checkpoint(folder))
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    assert len(report["rows"]) == len(weights)
    assert all(row["layer"] in result.output for row in report["rows"])
    measured = {row["what"]: row["measured"] for row in report["measurements"]}
    assert f"int8 (measured {measured['layers in float and int8'][:10]}, spread" in (
        folder / "sensitivity.html"
    ).read_text(encoding="utf-8")
    assert "<svg" in (folder / "sensitivity.html").read_text()


def test_sensitivity_wants_a_float_checkpoint(run_copy: Path) -> None:
    result = CliRunner().invoke(main, ["sensitivity", str(run_copy / "3-quantize")])
    assert result.exit_code == 2
    assert "quantized already" in result.output
