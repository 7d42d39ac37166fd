"""The teachers' answers as a loss, asked live or computed once for a fixed set of views."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.data.load import Data
from compress.data.splits import View
from compress.distill.config import GuidanceConfig, check_views
from compress.distill.features import Hinted
from compress.distill.losses import (
    decoupled_distillation,
    knowledge_distillation,
    relational_distillation,
    standardized,
)
from compress.distill.teachers import Voice, mean_answer, open_teacher
from compress.errors import CompressError
from compress.paths import atomic_write
from compress.progress import say, track
from compress.train.config import TrainConfig
from compress.train.diagnosis import Finding, diagnose, diagnose_labels, diagnose_student
from compress.train.evaluate import EVALUATION_BATCH, first_pixels
from compress.train.loop import Loss, TrainBatch, label_loss, train
from compress.train.state import Epoch

if TYPE_CHECKING:
    from compress.context import Context


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
    penalty: Callable[[], Tensor] | None = None,
) -> Guided:
    """Trains a model in place with the help of the context's teacher.

    Args:
        model: takes pixels.
        guidance: how the teacher helps.
        schedule: of the training.
        context: data, seed, folders and the teachers.
        title: names the training in the progress bar.
        penalty: called once a step; its gradient is added, its value is not, so that a loss that
            rises still means trouble.
    """
    assert context.teachers
    data, device = context.data, training_device()
    voices = [open_teacher(teacher, data, device) for teacher in context.teachers]
    confusion = teachers_confusion(voices, data)
    findings = diagnose_labels(confusion.tolist(), data.class_names)
    for finding in findings:
        say(f"  [yellow]{finding}[/]")
    views = views_to_ask(guidance, context.seed)
    stored = stored_answers(voices, data, views, store=context.store)
    losses = [guided_loss(voices, stored, guidance, schedule)]
    hinted = _with_hints(model, voices[0], guidance, data) if guidance.hints else None
    if hinted is not None:
        losses.append(lambda _logits, _batch: guidance.hint_weight * hinted.hint_loss())
    if penalty is not None:
        losses.append(lambda _logits, _batch: (extra := penalty()) - extra.detach())
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
        say(f"  [yellow]{finding}[/]")
    return Guided(history=history, findings=findings + about_student, asking_seconds=stored.seconds)


def _with_hints(model: nn.Module, voice: Voice, guidance: GuidanceConfig, data: Data) -> Hinted:
    """Returns the model with what compares its features with the first teacher's."""
    if voice.model is None:
        raise CompressError("hints need a teacher whose layers can be seen: a checkpoint, not ONNX")
    pixels = first_pixels(data.train, 2).to(training_device())
    model.to(pixels.device)
    return Hinted(model, voice.model, guidance.hints, guidance.hint_loss, pixels)


@torch.no_grad()
def teachers_confusion(voices: Sequence[Voice], data: Data) -> Tensor:
    """Counts validation images by label and by the teachers' answer, int64 `[classes, classes]`."""
    device = training_device()
    classes = len(data.class_names)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    n_batches = -(-len(data.validation) // EVALUATION_BATCH)
    batches = data.validation.batches(EVALUATION_BATCH)
    for batch in track(batches, "asking the teacher", total=n_batches):
        answers = ask_all(voices, batch.images.to(device).float()).argmax(1).cpu()
        counts.index_put_((batch.labels, answers), torch.tensor(1), accumulate=True)
    return counts


def ask_all(voices: Sequence[Voice], pixels: Tensor) -> Tensor:
    """Returns the teachers' common answer, float32 logits `[N, classes]`."""
    answers = [voice.ask(pixels) for voice in voices]
    return mean_answer(answers, [voice.teacher.weight for voice in voices])


def training_device() -> torch.device:
    """Returns where networks are trained and teachers asked."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The teachers' answers to the augmented views, made once."""

    views: tuple[Tensor, ...]
    """float32 logits `[n_train, classes]` for each view; none if the teachers are asked live."""
    seconds: float
    """What asking took, whenever that was."""


def views_to_ask(guidance: GuidanceConfig, seed: int) -> list[View | None]:
    """Returns the views whose answers are stored; None is the picture as it is.

    With fresh views that picture is the first: its answer holds for all of them, that to a crop
    with little on it would not.
    """
    views: list[View | None] = [View(seed=seed, number=number) for number in range(guidance.views)]
    return [None, *views[1:]] if guidance.fresh_views and views else views


def stored_answers(
    voices: Sequence[Voice], data: Data, views: Sequence[View | None], *, store: Path
) -> Stored:
    """Reads the teachers' answers to views of the training split, or asks for them.

    Args:
        voices: the teachers.
        data: its training split is what they are asked about.
        views: see `views_to_ask`.
        store: folder for the answers; stages of one run share it.
    """
    found, seconds = [], 0.0
    for view in views:
        answers = []
        for voice in voices:
            facts = f"{voice.teacher.digest} {data.fingerprint} {view}"
            path = store / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
            if not path.is_file():
                started = time.perf_counter()
                logits = _ask(voice, data, view)
                taken = {"seconds": str(time.perf_counter() - started)}
                with atomic_write(path) as partial:
                    save_file({"logits": logits}, partial, metadata=taken)
            with safe_open(path, framework="pt") as file:
                answers.append(file.get_tensor("logits").float())
                seconds += float(file.metadata()["seconds"])
        found.append(mean_answer(answers, [voice.teacher.weight for voice in voices]))
    return Stored(views=tuple(found), seconds=seconds)


def guided_loss(
    voices: Sequence[Voice], stored: Stored, guidance: GuidanceConfig, schedule: TrainConfig
) -> Loss:
    """Returns `alpha * soft_loss(teachers) + (1 - alpha) * cross-entropy(labels)`.

    Args:
        voices: the teachers.
        stored: their answers, if they are not asked live.
        guidance: weights and temperature.
        schedule: what the loss will be used in.

    Raises:
        CompressError: stored answers together with mixup, which blends pictures after the teacher
            saw them.
    """
    check_views(guidance, schedule)
    labels = label_loss(schedule.label_smoothing)
    mean = mean_answer(stored.views, [1] * guidance.views) if guidance.views else None

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        if mean is None:
            answers = ask_all(voices, batch.pixels)
        elif guidance.fresh_views:
            answers = mean[batch.index].to(logits.device)
        else:
            answers = stored.views[batch.view.number][batch.index].to(logits.device)
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


def _ask(voice: Voice, data: Data, view: View | None) -> Tensor:
    """Returns a teacher's float16 logits `[n_train, classes]` for a view of the train split."""
    device, name = training_device(), voice.teacher.path.name
    batches = data.train.batches(EVALUATION_BATCH, view=view)
    title = f"{name}'s answers" + (f", view {view.number + 1}" if view else "")
    tracked = track(batches, title, total=-(-len(data.train) // EVALUATION_BATCH))
    return torch.cat([voice.ask(batch.images.to(device).float()).half().cpu() for batch in tracked])
