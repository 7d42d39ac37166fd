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
from compress.kd.config import GuidanceConfig, check_views
from compress.kd.context import Context
from compress.kd.features import Hinted
from compress.kd.losses import (
    decoupled_distillation,
    knowledge_distillation,
    relational_distillation,
    standardized,
)
from compress.kd.stored_logits import StoredLogits, stored_logits
from compress.kd.teachers import Voice, mean_answer, open_teacher
from compress.log import track, warn
from compress.train.config import TrainConfig
from compress.train.diagnosis import Finding, diagnose, diagnose_labels, diagnose_student
from compress.train.epoch import Loss, TrainBatch, label_loss
from compress.train.evaluate import evaluation_batch, first_pixels
from compress.train.loop import train
from compress.train.state import Epoch


@dataclass(frozen=True, kw_only=True)
class Guided:
    """What a training with a teacher's help came to."""

    history: list[Epoch]
    findings: list[Finding]
    """Troubles that it showed."""
    asking_seconds: float
    """What the teachers' stored answers took; live ones are part of the training."""

    @property
    def validation_top1(self) -> float | None:
        """Percent, after the last epoch; None if there was none."""
        return self.history[-1].validation_top1 if self.history else None


def train_guided(
    model: nn.Module,
    guidance: GuidanceConfig,
    schedule: TrainConfig,
    context: Context,
    title: str,
    *,
    penalty: Callable[[TrainBatch], Tensor] | None = None,
) -> Guided:
    """Trains a model in place with the help of the context's teacher.

    Args:
        model: takes pixels.
        guidance: how the teacher helps.
        schedule: of the training.
        context: data, seed, folders and the teachers.
        title: names the training in the progress bar.
        penalty: its gradient is added to each step's, its value is not, so that a loss that rises
            still means trouble.
    """
    assert context.teachers
    data, device = context.data, distributed.device()
    voices = [open_teacher(teacher, data, device) for teacher in context.teachers]
    confusion = teachers_confusion(voices, data)
    findings = diagnose_labels(confusion.tolist(), data.class_names)
    for finding in findings:
        warn(f"  {finding}")
    views = views_to_ask(guidance, context.seed)
    stored = stored_logits(voices, data, views, store=context.store)
    losses = [guided_loss(voices, stored, guidance, schedule)]
    hinted = _with_hints(model, voices[0], guidance, data) if guidance.hints else None
    if hinted is not None:
        losses.append(lambda _logits, _batch: guidance.hint_weight * hinted.hint_loss())
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
        views=0 if guidance.fresh_views else guidance.views,
    )
    if hinted is not None:
        hinted.stop()
    findings += diagnose(history, len(data.class_names))
    teacher_top1 = 100 * float(confusion.diagonal().sum() / confusion.sum())
    about_student = diagnose_student(history, teacher_top1, len(data.validation))
    for finding in about_student:
        warn(f"  {finding}")
    return Guided(history=history, findings=findings + about_student, asking_seconds=stored.seconds)


def _with_hints(model: nn.Module, voice: Voice, guidance: GuidanceConfig, data: Data) -> Hinted:
    """Returns the model with what compares its features with the first teacher's."""
    if voice.model is None:
        raise CompressError("hints need a teacher whose layers can be seen: a checkpoint, not ONNX")
    pixels = first_pixels(data.train, 2).to(distributed.device())
    model.to(pixels.device)
    return Hinted(model, voice.model, guidance.hints, guidance.hint_loss, pixels)


@torch.no_grad()
def teachers_confusion(voices: Sequence[Voice], data: Data) -> Tensor:
    """Counts validation images by label and by the teachers' answer, int64 `[classes, classes]`."""
    device, split = distributed.device(), data.validation
    classes, size = len(data.class_names), evaluation_batch(split)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    own = torch.arange(len(split))[distributed.place() :: distributed.processes()]
    batches = split.batches(size, order=own)
    for batch in track(batches, "asking the teacher", total=-(-len(own) // size)):
        answers = ask_all(voices, batch.images.to(device).float()).argmax(1).cpu()
        counts.index_put_((batch.labels, answers), torch.tensor(1), accumulate=True)
    return distributed.total(counts)


def ask_all(voices: Sequence[Voice], pixels: Tensor) -> Tensor:
    """Returns the teachers' common answer, float32 logits `[N, classes]`."""
    answers = [voice.ask(pixels) for voice in voices]
    return mean_answer(answers, [voice.teacher.weight for voice in voices])


def views_to_ask(guidance: GuidanceConfig, seed: int) -> list[View | None]:
    """Returns the views whose answers are stored; None is the picture as it is.

    With fresh views that picture is the first: its answer holds for all of them, that to a crop
    with little on it would not.
    """
    views: list[View | None] = [View(seed=seed, number=number) for number in range(guidance.views)]
    return [None, *views[1:]] if guidance.fresh_views and views else views


def guided_loss(
    voices: Sequence[Voice], stored: StoredLogits, guidance: GuidanceConfig, schedule: TrainConfig
) -> Loss:
    """Returns `alpha * soft_loss(teachers) + (1 - alpha) * cross-entropy(labels)`.

    Args:
        voices: the teachers.
        stored: their logits, if they are not asked live.
        guidance: weights and temperature.
        schedule: what the loss will be used in.

    Raises:
        CompressError: stored answers together with mixup, which blends pictures after the teacher
            saw them.
    """
    check_views(guidance, schedule)
    labels = label_loss(schedule.label_smoothing)

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        if not guidance.views:
            answers = ask_all(voices, batch.pixels)
        else:
            view = None if guidance.fresh_views else batch.view.number
            answers = stored.rows(batch.index, view).to(logits.device)
        soft = soft_loss(logits, answers, batch, guidance)
        return guidance.alpha * soft + (1 - guidance.alpha) * labels(logits, batch)

    return loss


def soft_loss(
    student: Tensor, teacher: Tensor, batch: TrainBatch, guidance: GuidanceConfig
) -> Tensor:
    """Returns the loss against the teacher's logits that the settings name."""
    temperature = guidance.temperature
    if guidance.soft_loss == "dkd":
        target = batch.targets.argmax(1)
        return decoupled_distillation(
            student, teacher, target, temperature=temperature, beta=guidance.beta
        )
    if guidance.soft_loss == "dist":
        return relational_distillation(student, teacher, temperature=temperature)
    if guidance.soft_loss == "standardized":
        student, teacher = standardized(student), standardized(teacher)
    return knowledge_distillation(student, teacher, temperature=temperature)
