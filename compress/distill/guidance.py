"""The teacher's answers as a loss, asked live or computed once for a fixed set of views."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.data.load import Data
from compress.data.splits import View
from compress.distill.config import GuidanceConfig, check_views
from compress.distill.losses import (
    decoupled_distillation,
    knowledge_distillation,
    relational_distillation,
    standardized,
)
from compress.paths import atomic_write
from compress.progress import say, track
from compress.restore import load_model
from compress.train.config import TrainConfig
from compress.train.diagnosis import Finding, diagnose, diagnose_labels, diagnose_student
from compress.train.evaluate import first_pixels
from compress.train.loop import Loss, TrainBatch, label_loss, train
from compress.train.precision import Precision, autocast, choose_precision
from compress.train.state import Epoch

if TYPE_CHECKING:
    from compress.context import Context

TEACHER_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Guided:
    """What a training with a teacher's help came to."""

    history: list[Epoch]
    findings: list[Finding]
    """Troubles that it showed."""

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
    penalty: Callable[[], Tensor] | None = None,
) -> Guided:
    """Trains a model in place with the help of the context's teacher.

    Args:
        model: takes pixels.
        guidance: how the teacher helps.
        schedule: of the training.
        context: data, seed, folders and the teacher.
        title: names the training in the progress bar.
        penalty: called once a step; added to the loss.
    """
    assert context.teacher is not None
    data, teacher = context.data, load_model(context.teacher)
    confusion = teachers_confusion(teacher, data)
    findings = diagnose_labels(confusion.tolist(), data.class_names)
    for finding in findings:
        say(f"  [yellow]{finding}[/]")
    loss = guided_loss(
        teacher,
        data,
        guidance,
        schedule,
        seed=context.seed,
        store=context.store,
        teacher_digest=context.teacher.digest,
    )
    history = train(
        model,
        data,
        schedule,
        loss=loss if penalty is None else lambda *given: loss(*given) + penalty(),
        seed=context.seed,
        folder=context.folder,
        title=title,
        views=guidance.views,
    )
    findings += diagnose(history, len(data.class_names))
    teacher_top1 = 100 * float(confusion.diagonal().sum() / confusion.sum())
    about_student = diagnose_student(history, teacher_top1, len(data.validation))
    for finding in about_student:
        say(f"  [yellow]{finding}[/]")
    return Guided(history=history, findings=findings + about_student)


@torch.no_grad()
def teachers_confusion(teacher: nn.Module, data: Data) -> Tensor:
    """Counts validation images by label and by the teacher's answer, int64 `[classes, classes]`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = teacher.to(device).to(memory_format=torch.channels_last).eval()
    classes = len(data.class_names)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    precision = choose_precision(teacher, first_pixels(data.train), device, training=False)
    n_batches = -(-len(data.validation) // TEACHER_BATCH)
    batches = data.validation.batches(TEACHER_BATCH)
    for batch in track(batches, "asking the teacher", total=n_batches):
        pixels = batch.images.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(precision, device):
            answers = teacher(pixels).argmax(1).cpu()
        counts.index_put_((batch.labels, answers), torch.tensor(1), accumulate=True)
    return counts


def guided_loss(
    teacher: nn.Module,
    data: Data,
    guidance: GuidanceConfig,
    schedule: TrainConfig,
    *,
    seed: int,
    store: Path,
    teacher_digest: str,
) -> Loss:
    """Returns `alpha * soft_loss(teacher) + (1 - alpha) * cross-entropy(labels)`.

    Args:
        teacher: takes pixels.
        data: its training split is what the teacher is asked about.
        guidance: weight, temperature and number of stored views.
        schedule: what the loss will be used in.
        seed: of the views; the training loop's.
        store: folder for the stored answers; stages of one run share it.
        teacher_digest: names the teacher in the store.

    Raises:
        ValueError: stored views together with mixup or growing images, which change the picture
            after the teacher saw it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = teacher.to(device).to(memory_format=torch.channels_last).eval()
    teacher.requires_grad_(requires_grad=False)
    labels = label_loss(schedule.label_smoothing)
    check_views(guidance, schedule)
    precision = choose_precision(teacher, first_pixels(data.train), device, training=False)
    key = hashlib.sha256(f"{teacher_digest} {data.fingerprint} {seed}".encode()).hexdigest()[:16]
    stored = []
    for number in range(guidance.views):
        path = store / f"{key}-{number}.safetensors"
        if not path.is_file():
            logits = _ask(teacher, data, View(seed=seed, number=number), device, precision)
            with atomic_write(path) as partial:
                save_file({"logits": logits}, partial)
        stored.append(load_file(path)["logits"])

    def answers(batch: TrainBatch) -> Tensor:
        if guidance.views:
            return stored[batch.view.number][batch.index].float().to(device)
        with torch.no_grad(), autocast(precision, device):
            return teacher(batch.pixels).float()  # type: ignore[no-any-return]

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        soft = soft_loss(logits, answers(batch), batch, guidance)
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


@torch.no_grad()
def _ask(
    teacher: nn.Module, data: Data, view: View, device: torch.device, precision: Precision
) -> Tensor:
    """Returns the teacher's float16 logits `[n_train, classes]` for a view of the train split."""
    batches = data.train.batches(TEACHER_BATCH, view=view)
    n_batches = -(-len(data.train) // TEACHER_BATCH)
    parts = []
    for batch in track(batches, f"teacher's answers, view {view.number + 1}", total=n_batches):
        pixels = batch.images.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(precision, device):
            parts.append(teacher(pixels).half().cpu())
    return torch.cat(parts)
