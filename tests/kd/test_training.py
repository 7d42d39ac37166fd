"""The distillation loss, by hand, and training with it."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.architectures.build import build
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.data.splits import TensorSplit, View
from compress.errors import CompressError
from compress.kd.config import KDConfig, SoftLoss
from compress.kd.context import Context
from compress.kd.features import HintedStudent
from compress.kd.losses import (
    decoupled_distillation,
    knowledge_distillation,
    relational_distillation,
    standardized,
)
from compress.kd.stored_logits import stored_logits
from compress.kd.teachers import TeacherModel, read_teachers
from compress.kd.training import (
    distillation_loss,
    ensemble_logits,
    soft_loss,
    teacher_confusion,
    total_loss,
    train_with_kd,
    views_to_store,
)
from compress.measure.config import MeasureConfig
from compress.train.config import TrainConfig
from compress.train.diagnosis import Finding
from compress.train.epoch import TrainBatch
from compress.train.events import EpochEnd, Event
from tests.conftest import student_spec
from tests.kd.conftest import first_batch

SHORT = TrainConfig(epochs=2, min_steps=0, batch_size=128, precision="fp32")


def test_stored_logits_equal_live_ones(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    student = build(student_spec(digits)).eval()
    losses = {}
    for n_views in (0, 2):
        kd = KDConfig(n_views=n_views, fresh_views=False)
        views = views_to_store(kd, seed=3)
        stored = stored_logits(teachers, digits, views, store=tmp_path / "store")
        loss = distillation_loss(teachers, stored, kd, TrainConfig())
        batch = first_batch(digits, View(seed=3, number=1))
        losses[n_views] = loss(student(batch.images), batch).item()
    assert losses[2] == pytest.approx(losses[0], rel=1e-2)  # stored in half precision


def test_mean_logits_are_used_for_fresh_views(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    kd = KDConfig(alpha=1.0, temperature=1.0, n_views=2)
    stored = stored_logits(teachers, digits, views_to_store(kd, seed=3), store=tmp_path / "store")
    loss = distillation_loss(teachers, stored, kd, TrainConfig())
    batch = first_batch(digits, View(seed=3, number=7))
    student = torch.randn(32, 10)

    original = ensemble_logits(teachers, next(iter(digits.train.batches(32))).images.float())
    augmented = ensemble_logits(teachers, first_batch(digits, View(seed=3, number=1)).images)
    teacher = ((original + augmented) / 2).log_softmax(1)
    by_hand = (teacher.exp() * (teacher - student.log_softmax(1))).sum(1).mean()
    assert loss(student, batch).item() == pytest.approx(by_hand.item(), rel=1e-2)


def test_alpha_weighs_teacher_against_labels(digits: Data, teachers: list[TeacherModel]) -> None:
    batch, student = first_batch(digits, View(seed=0, number=0)), torch.randn(32, 10)
    stored = stored_logits([], digits, [], store=Path("unused"))
    kd = KDConfig(alpha=0.3, n_views=0, temperature=2.0)
    loss = distillation_loss(teachers, stored, kd, TrainConfig(label_smoothing=0.2))
    soft = knowledge_distillation(student, ensemble_logits(teachers, batch.images), temperature=2.0)
    hard = F.cross_entropy(student, batch.targets.argmax(1), label_smoothing=0.2)
    expected = 0.3 * soft + 0.7 * hard
    assert loss(student, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_original_image_comes_first_among_fresh_views() -> None:
    views = [View(seed=3, number=number) for number in range(3)]
    assert views_to_store(KDConfig(n_views=3), seed=3) == [None, *views[1:]]
    assert views_to_store(KDConfig(n_views=3, fresh_views=False), seed=3) == views
    assert views_to_store(KDConfig(n_views=0), seed=3) == []


@pytest.mark.parametrize("name", get_args(SoftLoss))
def test_each_soft_loss_is_the_named_one(digits: Data, name: SoftLoss) -> None:
    batch = first_batch(digits, View(seed=0, number=0))
    student, teacher = torch.randn(2, 32, 10, generator=torch.Generator().manual_seed(0))
    expected = {
        "kd": knowledge_distillation(student, teacher, temperature=3.0),
        "standardized": knowledge_distillation(
            standardized(student), standardized(teacher), temperature=3.0
        ),
        "dkd": decoupled_distillation(
            student, teacher, batch.targets.argmax(1), temperature=3.0, beta=5.0
        ),
        "dist": relational_distillation(student, teacher, temperature=3.0),
    }
    kd = KDConfig(soft_loss=name, temperature=3.0, beta=5.0)
    assert torch.equal(soft_loss(student, teacher, batch, kd), expected[name])


def test_confusion_counts_validation_images(digits: Data, teachers: list[TeacherModel]) -> None:
    split = digits.validation
    assert isinstance(split, TensorSplit)
    predicted = ensemble_logits(teachers, split.images.float()).argmax(1)
    expected = torch.zeros(10, 10, dtype=torch.int64)
    for label, prediction in zip(split.labels.tolist(), predicted.tolist(), strict=True):
        expected[label, prediction] += 1
    assert torch.equal(teacher_confusion(teachers, digits), expected)


def context(data: Data, folder: Path, teachers: list[TeacherModel]) -> Context:
    work = folder / "work"
    work.mkdir()
    return Context(
        data=data,
        seed=3,
        measure=MeasureConfig(),
        folder=work,
        store=folder / "store",
        teachers=tuple(teacher.source for teacher in teachers),
    )


def test_a_callback_receives_epochs_and_findings(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel], capsys: pytest.CaptureFixture[str]
) -> None:
    """The untrained teachers are worse than the student."""
    torch.manual_seed(0)
    model, events = build(student_spec(digits)), list[Event]()
    result = train_with_kd(
        model, KDConfig(alpha=0.1), SHORT, context(digits, tmp_path, teachers), "distill",
        on_event=events.append,
    )  # fmt: skip
    assert [event.row for event in events if isinstance(event, EpochEnd)] == result.history
    assert [event for event in events if isinstance(event, Finding)] == result.findings
    (finding,) = result.findings
    assert finding.remedy == "increase teacher.train.epochs or lower distill.kd.alpha"
    assert result.validation_top1 == result.history[-1].validation_top1
    assert result.teacher_seconds > 0
    assert capsys.readouterr().err == ""


def test_a_penalty_changes_the_gradient_but_not_the_loss(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    torch.manual_seed(0)
    model = build(student_spec(digits))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    norms, losses = [], []
    for weight in (0.0, 1.0):
        model.load_state_dict(start)
        folder = tmp_path / f"penalty-{weight}"
        folder.mkdir()

        def penalty(_batch: TrainBatch, weight: float = weight) -> Tensor:
            squares = [p.square().sum() for p in model.parameters() if p.ndim > 1]
            return weight * torch.stack(squares).sum()

        one_step = TrainConfig(epochs=1, min_steps=0, batch_size=2048, precision="fp32", lr=0.01)
        result = train_with_kd(
            model, KDConfig(), one_step, context(digits, folder, teachers), "prune",
            penalty=penalty,
        )  # fmt: skip
        norms.append(sum(p.norm().item() for p in model.parameters() if p.ndim > 1))
        losses.append(result.history[0].loss)
    assert norms[1] < 0.99 * norms[0]
    assert losses[1] < losses[0] + 1


def test_hints_and_penalty_join_the_loss(digits: Data) -> None:
    student, teacher = build(student_spec(digits)), build(student_spec(digits))
    batch = first_batch(digits, View(seed=0, number=0))
    hinted = HintedStudent(student, teacher, "blocks.0:blocks.0", "attention", batch.images)
    logits = hinted(batch.images)
    teacher(batch.images)
    weight = torch.tensor(5.0, requires_grad=True)
    loss = total_loss(
        lambda _logits, _batch: torch.tensor(2.0),
        hinted,
        KDConfig(n_views=0, hint_weight=3.0),
        lambda _batch: 7 * weight,
    )
    value = loss(logits, batch)
    assert value.item() == pytest.approx(2 + 3 * hinted.hint_loss().item())
    value.backward()
    assert weight.grad == 7


def test_stored_views_are_cycled(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    """Without, the second epoch would look for logits of a second view."""
    kd = KDConfig(n_views=1, fresh_views=False)
    model = build(student_spec(digits))
    result = train_with_kd(model, kd, SHORT, context(digits, tmp_path, teachers), "distill")
    assert [row.epoch for row in result.history] == [1, 2]


def test_hints_need_a_checkpoint_as_first_teacher(finished_run: Path, digits: Data) -> None:
    teachers = read_teachers(
        [str(finished_run / "1-distill"), str(finished_run / "1-distill" / "model.onnx")]
    )
    onnx_first = Context(
        data=digits,
        seed=0,
        measure=MeasureConfig(),
        folder=finished_run,
        store=finished_run,
        teachers=teachers[::-1],
    )
    kd = KDConfig(n_views=0, hints="blocks.0:blocks.0")
    with pytest.raises(CompressError, match="a checkpoint, not an ONNX file"):
        train_with_kd(build(student_spec(digits)), kd, SHORT, onnx_first, "distill")


def test_unlabeled_images_teach(finished_run: Path, tmp_path: Path) -> None:
    teachers = read_teachers([str(finished_run / "0-teacher")])
    data = load_data("digits", DataConfig(labels=0.02), seed=0)
    assert data.unlabeled is not None
    config = TrainConfig(
        epochs=6, min_steps=0, batch_size=64, lr=0.05, precision="fp32", data_fraction=0.5
    )
    tops = {}
    for name, one in {"labels only": replace(data, unlabeled=None), "all images": data}.items():
        torch.manual_seed(0)
        steps = replace(config, min_steps=6 * len(data.with_unlabeled().train) // 64)
        within = Context(
            data=one, seed=0, measure=MeasureConfig(), folder=tmp_path / name,
            store=tmp_path / "store", teachers=teachers,
        )  # fmt: skip
        within.folder.mkdir()
        result = train_with_kd(
            build(student_spec(data)), KDConfig(soft_loss="dkd"), steps, within, "distill"
        )
        assert result.validation_top1 is not None
        tops[name] = result.validation_top1
    assert tops["all images"] > tops["labels only"] + 5, tops
