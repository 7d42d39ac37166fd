"""Ensembles of checkpoints and ONNX files."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from compress.checkpoint import load_checkpoint
from compress.cli.main import main
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.int8.restore import load_model
from compress.kd.teachers import (
    checkpoint_teacher,
    mean_logits,
    open_teacher,
    read_teachers,
)

CPU = torch.device("cpu")


def test_an_ensemble_is_the_geometric_mean_at_any_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = 3 * torch.randn(2, 6, 5, generator=generator)
    mean = mean_logits([first, second + 7], [3.0, 1.0])
    for temperature in (1.0, 4.0):
        product = F.softmax(first / temperature, 1) ** 0.75
        product = product * F.softmax(second / temperature, 1) ** 0.25
        expected = product / product.sum(1, keepdim=True)
        assert torch.allclose(F.softmax(mean / temperature, 1), expected, atol=1e-6)


def test_one_teacher_is_its_own_ensemble() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(F.softmax(mean_logits([logits], [0.2]), 1), F.softmax(logits, 1))


def test_an_onnx_file_agrees_with_its_checkpoint(finished_run: Path, digits: Data) -> None:
    folder, file = finished_run / "1-distill", finished_run / "1-distill" / "model.onnx"
    images = digits.test.images[:16].float()  # type: ignore[attr-defined]
    checkpoint, onnx = read_teachers([str(folder), f"{file}=2.5"])
    of_checkpoint, of_file = (
        open_teacher(one, digits, CPU).forward(images) for one in (checkpoint, onnx)
    )
    assert torch.allclose(of_checkpoint, of_file, atol=0.05)  # the checkpoint may run in bf16
    assert (checkpoint.weight, onnx.weight) == (1.0, 2.5)


def test_images_are_resized_to_the_teacher_s_size(finished_run: Path, digits: Data) -> None:
    checkpoint = load_checkpoint(finished_run / "1-distill")
    larger = load_data("digits", DataConfig(size=24), seed=0)
    images = larger.test.images[:8].float()  # type: ignore[attr-defined]
    shrunk = F.interpolate(images, size=16, mode="bilinear", antialias=True)
    expected = load_model(checkpoint)(shrunk)
    for path in (checkpoint.folder, checkpoint.folder / "model.onnx"):
        (teacher,) = (*read_teachers([str(checkpoint.folder), str(path)])[1:],)
        logits = open_teacher(teacher, larger, CPU).forward(images)
        # An ONNX file takes integers only.
        assert (logits - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_teacher_with_other_classes_is_refused(finished_run: Path, digits: Data) -> None:
    teacher = checkpoint_teacher(load_checkpoint(finished_run / "1-distill"))
    other = dataclasses.replace(teacher, class_names=("cat", *teacher.class_names[1:]))
    with pytest.raises(ValueError, match="use a teacher trained on these classes"):
        open_teacher(other, digits, CPU)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1-distill/model.onnx"], "must be a checkpoint folder"),
        (["1-distill=-1"], "the weight must be positive, got -1"),
        (["1-distill", "nothing.onnx"], "nothing.onnx does not exist"),
    ],
)
def test_wrong_teachers_are_explained(finished_run: Path, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_teachers([str(finished_run / name) for name in names])


def test_a_run_with_several_teachers(finished_run: Path, tmp_path: Path) -> None:
    """Two small teachers and a larger student; the first teacher is the baseline."""
    card = tmp_path / "large.toml"
    card.write_text(
        '[teacher]\narchitecture = "scaled_resnet"\n[student]\narchitecture = "scaled_resnet"\n'
        "arguments = { width = 0.5, depths = [1, 1] }\n"
    )
    small, file = finished_run / "1-distill", finished_run / "2-prune" / "model.onnx"
    command = ["run", str(card), "--data", "digits", "--pipeline", "smoke"]
    command += ["--teacher", str(small), "--teacher", f"{file}=0.5", "--until", "distill"]
    command += ["--out", str(tmp_path / "run"), "--set", "distill.train.min_steps=80"]
    command += ["--set", "measure.rounds=5"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    teacher, student = json.loads((tmp_path / "run" / "report.json").read_text())["stages"]
    assert load_checkpoint(tmp_path / "run" / "0-teacher").digest == load_checkpoint(small).digest
    assert teacher["result"]["taken_from"] == str(small)
    assert student["parameters"] < teacher["parameters"]  # wider, but two blocks fewer
    assert student["top1"] > 90
    assert (
        len(list((tmp_path / "run" / "teacher-logits").glob("*.npy"))) == 2
    )  # one of each teacher
    again = CliRunner().invoke(main, command)
    assert "distill: already done" in again.output
    other = [part.replace("=0.5", "=0.7") for part in command]
    assert "distill: already done" not in CliRunner().invoke(main, other).output


def test_a_teacher_of_other_data_is_refused_before_the_run_starts(
    finished_run: Path, tmp_path: Path
) -> None:
    small, out = finished_run / "1-distill", tmp_path / "run"
    command = ["run", "resnet18", "--data", "fashion-mnist", "--teacher", str(small)]
    result = CliRunner().invoke(main, [*command, "--out", str(out)])
    assert result.exit_code == 2
    assert f"the teacher {small} predicts the classes 0, 1, 2" in result.output
    assert not out.exists()
    result = CliRunner().invoke(main, [*command[:-1], f"{small}=abc"])
    assert "'abc' is not a number" in result.output


def test_an_unknown_student_is_refused_before_the_teacher_is_trained(
    tmp_path: Path,
) -> None:
    card, out = tmp_path / "card.toml", tmp_path / "run"
    card.write_text('[teacher]\narchitecture = "resnet18"\n[student]\narchitecture = "resnet118"\n')
    result = CliRunner().invoke(main, ["run", str(card), "--data", "digits", "--out", str(out)])
    assert result.exit_code == 2
    assert "unknown architecture 'resnet118'; did you mean" in result.output
    assert not out.exists()


def test_a_single_stage_takes_several_teachers(run_copy: Path) -> None:
    """And hints from layers of the first one."""
    command = ["distill", "--in", str(run_copy / "0-teacher"), "--out", str(run_copy / "other")]
    command += ["--teacher", str(run_copy / "0-teacher"), "--epochs", "1", "--min-steps", "0"]
    several = [*command, "--teacher", str(run_copy / "1-distill")]
    result = CliRunner().invoke(main, [*several, "--hints", "blocks.0:blocks.1"])
    assert result.exit_code == 2
    assert "set kd.n_views = 0" in result.output
    result = CliRunner().invoke(main, [*several, "--hints", "blocks.0:blocks.9", "--n-views", "0"])
    assert "the teacher has no layer 'blocks.9'; did you mean blocks." in result.output
    for loss in ("attention", "features"):
        hints = ["--hints", "blocks.0:blocks.0,blocks.1:blocks.1", "--hint-loss", loss]
        result = CliRunner().invoke(main, [*several, "--n-views", "0", *hints])
        assert result.exit_code == 0, result.output
        # The projections are gone: the student is the card's network.
        student = load_checkpoint(run_copy / "other")
        assert load_model(student).state_dict().keys() == (
            load_model(load_checkpoint(run_copy / "1-distill")).state_dict().keys()
        )
