"""Training with teachers: distillation loss, hints, and findings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress import distributed
from compress.data.dataset import Data
from compress.data.splits import View, batch_count
from compress.errors import CompressError
from compress.kd.config import KDConfig, check_kd
from compress.kd.context import Context
from compress.kd.features import HintedStudent
from compress.kd.int8_teacher import int8_if_better
from compress.kd.losses import (
    decoupled_distillation,
    knowledge_distillation,
    relational_distillation,
    standardized,
)
from compress.kd.stored_logits import StoredLogits, stored_logits
from compress.kd.teachers import TeacherModel, mean_logits, open_teacher
from compress.train.config import TrainConfig
from compress.train.diagnosis import Finding, diagnose, diagnose_labels, diagnose_student
from compress.train.epoch import Loss, TrainBatch, label_loss
from compress.train.evaluate import evaluation_batch, first_images
from compress.train.events import OnEvent, print_event, progress_bar
from compress.train.loop import train
from compress.train.state import Epoch

Penalty = Callable[[TrainBatch], Tensor]


@dataclass(frozen=True, kw_only=True)
class KDResult:
    """Outcome of a training run with teachers."""

    history: list[Epoch]
    findings: list[Finding]
    teacher_seconds: float
    """Time to compute the stored logits; the history includes the time of live teachers."""
    live_teachers: tuple[str, ...] = ()
    """Live teachers, and whether float or int8 computes their logits."""

    @property
    def validation_top1(self) -> float | None:
        """Top-1 after the last epoch, in percent; None without epochs."""
        return self.history[-1].validation_top1 if self.history else None

    @property
    def student_seconds(self) -> float:
        """Time of the epochs, without validation."""
        return sum(row.seconds for row in self.history)

    @property
    def seconds(self) -> float:
        """Time of the epochs, without validation, and of the stored logits."""
        return self.teacher_seconds + self.student_seconds


def train_with_kd(
    model: nn.Module,
    kd: KDConfig,
    schedule: TrainConfig,
    context: Context,
    stage: str,
    *,
    title: str = "",
    penalty: Penalty | None = None,
    on_event: OnEvent = print_event,
) -> KDResult:
    """Trains a model in place with the context's teachers.

    Args:
        model: maps images to logits.
        kd: distillation loss.
        schedule: training settings.
        context: data, seed, folders, and teachers.
        stage: stage whose settings the findings refer to.
        title: name of the run in messages and progress bars; by default the stage.
        penalty: added to the gradient but not to the reported loss, so that a rising loss still
            indicates a problem.
        on_event: receives progress; by default it is printed.

    Raises:
        CompressError: a teacher does not fit the data, the settings contradict each other, or a
            hinted layer does not exist.
    """
    assert context.teachers
    data = context.data.with_unlabeled()
    teachers = _open_teachers(kd, schedule, data, context, on_event)
    confusion = teacher_confusion(teachers, data, on_event)
    findings = diagnose_labels(confusion.tolist(), data.class_names)
    _emit(findings, on_event)
    views = views_to_store(kd, context.seed)
    stored = stored_logits(teachers, data, views, store=context.store, on_event=on_event)
    hinted = _with_hints(model, teachers[0], kd, data) if kd.hints else None
    history = train(
        hinted or model,
        data,
        schedule,
        loss=total_loss(distillation_loss(teachers, stored, kd, schedule), hinted, kd, penalty),
        seed=context.seed,
        folder=context.folder,
        title=title or stage,
        n_views=0 if kd.fresh_views else kd.n_views,
        on_event=on_event,
    )
    if hinted is not None:
        hinted.remove_hooks()
    teacher_top1 = 100 * float(confusion.diagonal().sum() / confusion.sum())
    of_student = [
        *diagnose(history, len(data.class_names), stage),
        *diagnose_student(history, teacher_top1, len(data.validation), stage),
    ]
    _emit(of_student, on_event)
    return KDResult(
        history=history,
        findings=findings + of_student,
        teacher_seconds=stored.seconds,
        live_teachers=tuple(
            f"{one.source.path}: {one.precision}" for one in teachers if one.precision
        ),
    )


def _open_teachers(
    kd: KDConfig, schedule: TrainConfig, data: Data, context: Context, on_event: OnEvent
) -> list[TeacherModel]:
    """Opens the context's teachers; live ones in int8 if that is better.

    Hints need the network's features, and a file cannot follow progressive resizing.
    """
    device = distributed.device()
    teachers = [open_teacher(one, data, device) for one in context.teachers]
    live = not kd.n_views and not kd.hints
    if not live or schedule.start_size < 1 or device.type != "cpu":
        return teachers
    return [int8_if_better(one, data, store=context.store, on_event=on_event) for one in teachers]


def _emit(findings: Sequence[Finding], on_event: OnEvent) -> None:
    for finding in findings:
        on_event(finding)


def _with_hints(model: nn.Module, teacher: TeacherModel, kd: KDConfig, data: Data) -> HintedStudent:
    if teacher.model is None:
        raise CompressError(
            "hints need a first teacher whose layers are accessible: a checkpoint, not an ONNX file"
        )
    images = first_images(data.train, 2).to(distributed.device())
    model.to(images.device)
    return HintedStudent(model, teacher.model, kd.hints, kd.hint_loss, images)


def total_loss(
    distillation: Loss, hinted: HintedStudent | None, kd: KDConfig, penalty: Penalty | None
) -> Loss:
    """Adds hint loss and penalty to the distillation loss."""

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        terms = [distillation(logits, batch)]
        if hinted is not None:
            terms.append(kd.hint_weight * hinted.hint_loss())
        if penalty is not None:
            value = penalty(batch)
            terms.append(value - value.detach())
        return torch.stack(terms).sum()

    return loss


@torch.no_grad()
def teacher_confusion(
    teachers: Sequence[TeacherModel], data: Data, on_event: OnEvent = print_event
) -> Tensor:
    """Counts validation images by label and ensemble prediction, int64 `[classes, classes]`."""
    device, split = distributed.device(), data.validation
    classes, size = len(data.class_names), evaluation_batch(split)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    own = torch.arange(len(split))[distributed.rank() :: distributed.processes()]
    total = batch_count(len(own), size)
    batches = split.batches(size, order=own)
    for batch in progress_bar(batches, "scoring the teacher", total=total, on_event=on_event):
        logits = ensemble_logits(teachers, batch.images.to(device).float())
        predicted = logits.argmax(1).cpu()
        counts.index_put_((batch.labels, predicted), torch.tensor(1), accumulate=True)
    return distributed.total(counts)


def ensemble_logits(teachers: Sequence[TeacherModel], images: Tensor) -> Tensor:
    """Runs all teachers and returns their mean logits, float32 `[N, classes]`."""
    logits = [teacher.forward(images) for teacher in teachers]
    return mean_logits(logits, [teacher.source.weight for teacher in teachers])


def views_to_store(kd: KDConfig, seed: int) -> list[View | None]:
    """Returns the views whose teacher logits are stored; None means the original images.

    With fresh views, the original comes first: its logits suit all views, whereas those of a crop
    may miss the object.
    """
    views: list[View | None] = [View(seed=seed, number=number) for number in range(kd.n_views)]
    return [None, *views[1:]] if kd.fresh_views and views else views


def distillation_loss(
    teachers: Sequence[TeacherModel], stored: StoredLogits, kd: KDConfig, schedule: TrainConfig
) -> Loss:
    """Returns `alpha * soft_loss(teachers) + (1 - alpha) * cross-entropy(labels)`.

    The teachers run in every step if `kd.n_views` is 0; otherwise their stored logits are used.

    Raises:
        CompressError: see `check_kd`.
    """
    check_kd(kd, schedule)
    cross_entropy = label_loss(schedule.label_smoothing)

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        if not kd.n_views:
            teacher_logits = ensemble_logits(teachers, batch.images)
        else:
            view = None if kd.fresh_views else batch.view.number
            teacher_logits = stored.rows(batch.index, view).to(logits.device)
        soft = soft_loss(logits, teacher_logits, batch, kd)
        return kd.alpha * soft + (1 - kd.alpha) * cross_entropy(logits, batch)

    return loss


def soft_loss(student: Tensor, teacher: Tensor, batch: TrainBatch, kd: KDConfig) -> Tensor:
    """Returns the configured loss between student and teacher logits, float `[N, classes]`."""
    match kd.soft_loss:
        case "kd":
            return knowledge_distillation(student, teacher, temperature=kd.temperature)
        case "standardized":
            return knowledge_distillation(
                standardized(student), standardized(teacher), temperature=kd.temperature
            )
        case "dkd":
            label = batch.targets.argmax(1)
            target = torch.where(batch.labeled, label, teacher.argmax(1))
            return decoupled_distillation(
                student, teacher, target, temperature=kd.temperature, beta=kd.beta
            )
        case "dist":
            return relational_distillation(student, teacher, temperature=kd.temperature)
