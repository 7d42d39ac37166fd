"""Did the teacher pay? The same student alone, for the same time on the clock."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from compress.architectures.build import build
from compress.distill.guidance import Guided
from compress.export.onnx_file import export_onnx
from compress.measure.accuracy import accuracy, predict_split
from compress.train.config import TrainConfig
from compress.train.loop import label_loss, train
from compress.train.schedule import epochs_for
from compress.train.state import Epoch

if TYPE_CHECKING:
    from compress.architectures.spec import ModelSpec
    from compress.context import Context


@dataclass(frozen=True, kw_only=True)
class Alone:
    """The student trained on the labels only."""

    top1: float
    """Percent of the test images, its ONNX file in ONNX Runtime."""
    top1_ci95: tuple[float, float]
    epochs: int
    seconds: float
    guided_epochs: int
    guided_seconds: float
    """Of the distillation: the student's epochs and the teachers' answers."""


def train_alone(spec: ModelSpec, schedule: TrainConfig, guided: Guided, context: Context) -> Alone:
    """Trains a new student from the same seed for the time that the distillation took.

    One epoch is trained to see how long it takes alone; the schedule's length follows from that.

    Args:
        spec: the student.
        schedule: the distillation's.
        guided: what the distillation was.
        context: data, seed and folder.
    """

    def trained(epochs: int, name: str) -> tuple[torch.nn.Module, list[Epoch]]:
        torch.manual_seed(context.seed)
        model = build(spec)
        folder = context.folder / name
        folder.mkdir(exist_ok=True)
        fitted = dataclasses.replace(schedule, epochs=epochs, min_steps=0, patience=0)
        loss = label_loss(schedule.label_smoothing)
        history = train(
            model,
            context.data,
            fitted,
            loss=loss,
            seed=context.seed,
            folder=folder,
            title=f"student {name}",
        )
        return model, history

    guided_seconds = guided.asking_seconds + seconds_of(guided.history)
    _, probe = trained(1, "timed")
    n_images = len(context.data.train)
    images = n_images * guided_seconds / seconds_of(probe)
    epochs = epochs_for(images, schedule.image_share, n_images)
    model, history = trained(epochs, "alone")
    path = context.folder / "alone" / "model.onnx"
    export_onnx(model, spec, path, digest="", stage="distill")
    test = context.data.test
    scores = accuracy(predict_split(path, test), test.labels.numpy())
    return Alone(
        top1=scores.top1,
        top1_ci95=scores.top1_ci95,
        epochs=epochs,
        seconds=seconds_of(history),
        guided_epochs=len(guided.history),
        guided_seconds=guided_seconds,
    )


def seconds_of(history: list[Epoch]) -> float:
    """Returns what the training of a history's epochs took, scoring left out."""
    return sum(row.seconds for row in history)
