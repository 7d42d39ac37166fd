"""Each problem is provoked by a training run that has it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.architectures.build import Classifier, build
from compress.data.augment import Augmentation
from compress.data.dataset import Data
from compress.data.splits import TensorSplit
from compress.run.stages import STAGES
from compress.train.config import TrainConfig
from compress.train.diagnosis import Finding, diagnose, diagnose_labels, diagnose_student
from compress.train.epoch import label_loss
from compress.train.evaluate import evaluate
from compress.train.loop import train
from compress.train.state import Epoch
from tests.conftest import student_spec

CONFIG = TrainConfig(epochs=4, min_steps=0, batch_size=128, precision="fp32", label_smoothing=0.0)


def trained(
    data: Data, folder: Path, config: TrainConfig, model: nn.Module | None = None
) -> list[Epoch]:
    torch.manual_seed(0)
    model = model or build(student_spec(data))
    loss = label_loss(config.label_smoothing)
    return train(model, data, config, loss=loss, seed=0, folder=folder, title="test")


def troubles(findings: list[Finding]) -> list[str]:
    return [finding.trouble for finding in findings]


def test_a_good_run_has_no_findings(digits: Data, tmp_path: Path) -> None:
    history = trained(digits, tmp_path, replace(CONFIG, epochs=8))
    assert history[-1].train_top1 > 80
    assert diagnose(history, 10, "teacher") == []


def test_a_tiny_learning_rate_does_not_converge(digits: Data, tmp_path: Path) -> None:
    history = trained(digits, tmp_path, replace(CONFIG, lr=1e-9))
    (finding,) = diagnose(history, 10, "teacher")
    assert finding.trouble == "not converging"
    assert finding.remedy == "multiply or divide teacher.train.lr by ten (it peaked at 1e-09)"
    assert diagnose(history[:2], 10, "teacher") == []  # too short to tell


def test_a_trained_network_need_not_converge_again(digits: Data, tmp_path: Path) -> None:
    model = build(student_spec(digits))
    smooth = replace(CONFIG, label_smoothing=0.1)  # its loss is far from 0, so that it can stay
    trained(digits, tmp_path / "before", replace(smooth, epochs=8), model)
    history = trained(digits, tmp_path / "after", replace(smooth, lr=1e-9), model)
    assert history[-1].loss == pytest.approx(history[0].loss, rel=0.03)
    assert diagnose(history, 10, "teacher") == []


def test_too_few_images_are_overfitted(digits: Data, tmp_path: Path) -> None:
    """Forty images, some with wrong labels, for many epochs."""
    train_split = digits.train
    assert isinstance(train_split, TensorSplit)
    labels = train_split.labels[:40].clone()
    labels[::2] = labels[::2].roll(1)
    plain = replace(train_split, augmentation=Augmentation(), shift=0)
    few = replace(plain, images=train_split.images[:40], labels=labels)
    data = replace(digits, train=few)
    history = trained(data, tmp_path, replace(CONFIG, epochs=40, batch_size=20, lr=0.1))
    assert history[-1].train_top1 > 95
    assert "overfitting" in troubles(diagnose(history, 10, "teacher"))


def test_validation_ahead_of_training_is_not_overfitting(digits: Data, tmp_path: Path) -> None:
    """A real history, with validation ahead of training all the time."""
    first, *_, last = trained(digits, tmp_path, CONFIG)
    best = replace(first, validation_loss=0.1, train_top1=80.0, validation_top1=99.0)
    worse = replace(last, validation_loss=0.2, train_top1=95.0, validation_top1=96.0)
    assert diagnose([best, worse], 10, "teacher") == []
    assert troubles(diagnose([best, replace(worse, train_top1=99.0)], 10, "teacher")) == [
        "overfitting"
    ]


def test_patience_stops_and_keeps_the_best(digits: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(student_spec(digits))
    config = replace(CONFIG, epochs=30, lr=0.5, patience=2)
    history = trained(digits, tmp_path, config, model)
    best = min(row.validation_loss for row in history)
    assert len(history) < 30
    assert history[-3].validation_loss == best
    loss, _ = evaluate(model, digits.validation)
    assert loss == pytest.approx(best, rel=1e-5)


class _Narrow(nn.Module):
    """Sees only the mean gray level of each quadrant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x, 2)
        return self.fc(pooled.flatten(1))  # type: ignore[no-any-return]


def test_a_student_without_capacity_is_saturated(digits: Data, tmp_path: Path) -> None:
    model = Classifier(build(student_spec(digits)).normalize, _Narrow())
    history = trained(digits, tmp_path, replace(CONFIG, epochs=60, lr=0.2), model)
    assert troubles(diagnose_student(history, 99.0, 116, "distill")) == ["the student is saturated"]


def test_a_worse_teacher_is_reported(digits: Data, tmp_path: Path) -> None:
    history = trained(digits, tmp_path, replace(CONFIG, epochs=8))
    assert diagnose_student(history, history[-1].validation_top1, 116, "distill") == []
    (finding,) = diagnose_student(history, 40.0, 116, "distill")
    assert finding.trouble == "the teacher is worse than the student"
    assert "40.00 %" in finding.evidence


def test_a_teacher_with_permuted_classes_is_reported() -> None:
    names = ("ant", "bee", "cat", "dog")
    right = [[9, 1, 0, 0], [0, 8, 2, 0], [4, 0, 6, 0], [0, 0, 0, 10]]
    assert diagnose_labels(right, names) == []
    permuted = [right[1], right[2], right[3], right[0]]
    (finding,) = diagnose_labels(permuted, names)
    assert "it predicts 'bee' for 'ant'" in finding.evidence


def test_a_poor_teacher_is_not_taken_for_one_with_permuted_classes() -> None:
    mostly_cat = [[1, 0, 9, 0], [0, 1, 9, 0], [0, 0, 10, 0], [0, 0, 9, 1]]
    assert diagnose_labels(mostly_cat, ("ant", "bee", "cat", "dog")) == []


ROWS = tuple(
    Epoch(
        epoch=epoch,
        image_size=16,
        lr=0.1,
        loss=2.0 - 0.5 * epoch,
        train_top1=80.0,
        validation_loss=1.0,
        validation_top1=80.0,
        images_per_second=1.0,
        seconds=1.0,
        precision="fp32",
    )
    for epoch in (1, 2, 3)
)


def changed(**last: Any) -> list[Epoch]:
    return [*ROWS[:2], replace(ROWS[2], **last)]


@pytest.mark.parametrize(
    ("history", "evidence"),
    [
        (changed(), []),
        (changed(loss=1.56), ["the loss rose from 1.500 in the first epoch to 1.560 in the last"]),
        (changed(loss=1.54), []),  # within 3 %, and the network was trained before
        (changed(validation_top1=14.9), ["validation top-1 is 14.90 %, chance is 10.00 %"]),
        (changed(validation_top1=15.1), []),
        ([], []),
    ],
)
def test_bounds_of_not_converging(history: list[Epoch], evidence: list[str]) -> None:
    assert [finding.evidence for finding in diagnose(history, 10, "teacher")] == evidence


def test_a_loss_that_stays_is_reported_for_a_network_that_knew_nothing() -> None:
    history = [replace(row, train_top1=49.0, loss=1.5) for row in ROWS]
    assert [finding.evidence for finding in diagnose(history, 10, "teacher")] == [
        "the loss stayed at 1.500 (1.500 in the first epoch)"
    ]
    assert diagnose([replace(row, train_top1=51.0) for row in history], 10, "teacher") == []


@pytest.mark.parametrize(
    ("validation_loss", "train_top1", "found"),
    [(1.12, 83.1, ["overfitting"]), (1.09, 83.1, []), (1.12, 82.9, [])],
)
def test_bounds_of_overfitting(validation_loss: float, train_top1: float, found: list[str]) -> None:
    history = changed(validation_loss=validation_loss, train_top1=train_top1)
    findings = diagnose(history, 10, "teacher")
    assert troubles(findings) == found


@pytest.mark.parametrize(("teacher_top1", "found"), [(71.0, []), (68.0, ["the teacher is worse"])])
def test_a_teacher_must_be_significantly_worse(teacher_top1: float, found: list[str]) -> None:
    """Two standard errors of a difference at 80 % and 100 images are 11.3 points."""
    findings = diagnose_student(ROWS, teacher_top1, 100, "distill")
    assert [trouble[:20] for trouble in troubles(findings)] == found


def test_remedies_name_settings_of_the_stage() -> None:
    histories = (
        changed(loss=9.0),
        changed(validation_top1=1.0),
        changed(validation_loss=9.0, train_top1=99.0),
    )
    for stage in ("teacher", "distill", "prune", "quantize"):
        findings = [finding for history in histories for finding in diagnose(history, 10, stage)]
        if stage != "teacher":
            findings += diagnose_student(ROWS, 1.0, 100, stage)
        assert len(findings) >= 3
        names = {name for one in findings for name in re.findall(r"[a-z]+\.[a-z_.]+", one.remedy)}
        assert len(names) >= 5
        for name in names:
            section, *path = name.split(".")
            value: object = STAGES[section].config
            for part in path:
                value = getattr(value, part)
            assert isinstance(value, int | float), name
