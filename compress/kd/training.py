"""The teachers' answers as a loss, asked live or computed once for a fixed set of views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress import distributed
from compress.data.load import Data
from compress.data.splits import View
from compress.errors import CompressError
from compress.kd.config import KDConfig, check_kd
from compress.kd.context import Context
from compress.kd.features import Hinted
from compress.kd.losses import (
    decoupled_distillation,
    knowledge_distillation,
    relational_distillation,
    standardized,
)
from compress.kd.stored_logits import StoredLogits, stored_logits
from compress.kd.teachers import TeacherModel, mean_logits, open_teacher
from compress.log import track, warn
from compress.train.config import TrainConfig
from compress.train.diagnosis import Finding, diagnose, diagnose_labels, diagnose_student
from compress.train.epoch import Loss, TrainBatch, label_loss
from compress.train.evaluate import evaluation_batch, first_images
from compress.train.loop import train
from compress.train.state import Epoch


@dataclass(frozen=True, kw_only=True)
class KDResult:
    """What a training with a teacher's help came to."""

    history: list[Epoch]
    findings: list[Finding]
    """Troubles that it showed."""
    teacher_seconds: float
    """What the teachers' stored answers took; live ones are part of the training."""

    @property
    def validation_top1(self) -> float | None:
        """Percent, after the last epoch; None if there was none."""
        return self.history[-1].validation_top1 if self.history else None


def train_with_kd(
    model: nn.Module,
    kd: KDConfig,
    schedule: TrainConfig,
    context: Context,
    title: str,
    *,
    penalty: Callable[[TrainBatch], Tensor] | None = None,
) -> KDResult:
    """Trains a model in place with the help of the context's teacher.

    Args:
        model: takes images.
        kd: how the teacher helps.
        schedule: of the training.
        context: data, seed, folders and the teachers.
        title: names the training in the progress bar.
        penalty: its gradient is added to each step's, its value is not, so that a loss that rises
            still means trouble.
    """
    assert context.teachers
    data, device = context.data, distributed.device()
    teachers = [open_teacher(teacher, data, device) for teacher in context.teachers]
    confusion = teacher_confusion(teachers, data)
    findings = diagnose_labels(confusion.tolist(), data.class_names)
    for finding in findings:
        warn(f"  {finding}")
    views = views_to_store(kd, context.seed)
    stored = stored_logits(teachers, data, views, store=context.store)
    losses = [distillation_loss(teachers, stored, kd, schedule)]
    hinted = _with_hints(model, teachers[0], kd, data) if kd.hints else None
    if hinted is not None:
        losses.append(lambda _logits, _batch: kd.hint_weight * hinted.hint_loss())
    if penalty is not None:
        losses.append(lambda _logits, batch: (extra := penalty(batch)) - extra.detach())
    history = train(
        hinted or model,
        data,
        schedule,
        loss=lambda logits, batch: torch.stack([one(logits, batch) for one in losses]).sum(),
        seed=context.seed,
        folder=context.folder,
        title=title,
        n_views=0 if kd.fresh_views else kd.n_views,
    )
    if hinted is not None:
        hinted.stop()
    findings += diagnose(history, len(data.class_names))
    teacher_top1 = 100 * float(confusion.diagonal().sum() / confusion.sum())
    about_student = diagnose_student(history, teacher_top1, len(data.validation))
    for finding in about_student:
        warn(f"  {finding}")
    return KDResult(
        history=history, findings=findings + about_student, teacher_seconds=stored.seconds
    )


def _with_hints(model: nn.Module, teacher: TeacherModel, kd: KDConfig, data: Data) -> Hinted:
    """Returns the model with what compares its features with the first teacher's."""
    if teacher.model is None:
        raise CompressError("hints need a teacher whose layers can be seen: a checkpoint, not ONNX")
    images = first_images(data.train, 2).to(distributed.device())
    model.to(images.device)
    return Hinted(model, teacher.model, kd.hints, kd.hint_loss, images)


@torch.no_grad()
def teacher_confusion(teachers: Sequence[TeacherModel], data: Data) -> Tensor:
    """Counts validation images by label and by the teachers' answer, int64 `[classes, classes]`."""
    device, split = distributed.device(), data.validation
    classes, size = len(data.class_names), evaluation_batch(split)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    own = torch.arange(len(split))[distributed.place() :: distributed.processes()]
    batches = split.batches(size, order=own)
    for batch in track(batches, "asking the teacher", total=-(-len(own) // size)):
        answers = ensemble_logits(teachers, batch.images.to(device).float()).argmax(1).cpu()
        counts.index_put_((batch.labels, answers), torch.tensor(1), accumulate=True)
    return distributed.total(counts)


def ensemble_logits(teachers: Sequence[TeacherModel], images: Tensor) -> Tensor:
    """Returns the teachers' common answer, float32 logits `[N, classes]`."""
    answers = [teacher.forward(images) for teacher in teachers]
    return mean_logits(answers, [teacher.source.weight for teacher in teachers])


def views_to_store(kd: KDConfig, seed: int) -> list[View | None]:
    """Returns the views whose answers are stored; None is the picture as it is.

    With fresh views that picture is the first: its answer holds for all of them, that to a crop
    with little on it would not.
    """
    views: list[View | None] = [View(seed=seed, number=number) for number in range(kd.n_views)]
    return [None, *views[1:]] if kd.fresh_views and views else views


def distillation_loss(
    teachers: Sequence[TeacherModel], stored: StoredLogits, kd: KDConfig, schedule: TrainConfig
) -> Loss:
    """Returns `alpha * soft_loss(teachers) + (1 - alpha) * cross-entropy(labels)`.

    Args:
        teachers: the teachers.
        stored: their logits, if they are not asked live.
        kd: weights and temperature.
        schedule: what the loss will be used in.

    Raises:
        CompressError: stored answers together with mixup, which blends pictures after the teacher
            saw them.
    """
    check_kd(kd, schedule)
    labels = label_loss(schedule.label_smoothing)

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        if not kd.n_views:
            answers = ensemble_logits(teachers, batch.images)
        else:
            view = None if kd.fresh_views else batch.view.number
            answers = stored.rows(batch.index, view).to(logits.device)
        soft = soft_loss(logits, answers, batch, kd)
        return kd.alpha * soft + (1 - kd.alpha) * labels(logits, batch)

    return loss


def soft_loss(student: Tensor, teacher: Tensor, batch: TrainBatch, kd: KDConfig) -> Tensor:
    """Returns the loss against the teacher's logits that the settings name."""
    temperature = kd.temperature
    if kd.soft_loss == "dkd":
        target = batch.targets.argmax(1)
        return decoupled_distillation(
            student, teacher, target, temperature=temperature, beta=kd.beta
        )
    if kd.soft_loss == "dist":
        return relational_distillation(student, teacher, temperature=temperature)
    if kd.soft_loss == "standardized":
        student, teacher = standardized(student), standardized(teacher)
    return knowledge_distillation(student, teacher, temperature=temperature)
