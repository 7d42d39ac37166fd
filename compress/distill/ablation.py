"""Did the teacher pay? The same student alone, for the same time on the clock."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.distributed import everywhere
from compress.kd.context import Context
from compress.kd.training import KDResult
from compress.measure.accuracy import accuracy, predict_split
from compress.onnx_file import export_onnx
from compress.train.config import TrainConfig
from compress.train.epoch import label_loss
from compress.train.loop import train
from compress.train.schedule import epochs_for
from compress.train.state import Epoch


@dataclass(frozen=True, kw_only=True)
class Alone:
    """The student trained on the labels only."""

    top1: float
    """Percent of the test images, its ONNX file in ONNX Runtime."""
    top1_ci95: tuple[float, float]
    epochs: int
    seconds: float
    kd_epochs: int
    kd_seconds: float
    """Of the distillation: the student's epochs and the teachers' answers."""


def train_alone(
    spec: ModelSpec, schedule: TrainConfig, with_kd: KDResult, context: Context
) -> Alone:
    """Trains a new student from the same seed for the time that the distillation took.

    Two epochs are trained to see how long one takes alone; the schedule's length follows from that.

    Args:
        spec: the student.
        schedule: the distillation's.
        with_kd: what the distillation was.
        context: data, seed and folder.
    """

    def trained(config: TrainConfig, name: str) -> tuple[torch.nn.Module, list[Epoch]]:
        torch.manual_seed(context.seed)
        model = build(spec)
        folder = context.folder / name
        folder.mkdir(exist_ok=True)
        history = everywhere(
            train,
            model,
            context.data,
            config,
            loss=label_loss(config.label_smoothing),
            seed=context.seed,
            folder=folder,
            title=f"student {name}",
        )
        return model, history

    to_the_end = dataclasses.replace(schedule, min_steps=0, patience=0)
    probe = dataclasses.replace(to_the_end, epochs=2, start_size=1.0)
    _, (first, second) = trained(probe, "timed")
    kd_seconds = with_kd.teacher_seconds + seconds_of(with_kd.history)
    n_images = len(context.data.train)
    images = n_images * epochs_in(kd_seconds, first.seconds, second.seconds)
    epochs = epochs_for(images, schedule.data_fraction, n_images)
    model, history = trained(dataclasses.replace(to_the_end, epochs=epochs), "alone")
    path = context.folder / "alone" / "model.onnx"
    export_onnx(model, spec, path, digest="", stage="distill")
    test = context.data.test
    scores = accuracy(predict_split(path, test), test.labels.numpy())
    return Alone(
        top1=scores.top1,
        top1_ci95=scores.top1_ci95,
        epochs=epochs,
        seconds=seconds_of(history),
        kd_epochs=len(with_kd.history),
        kd_seconds=kd_seconds,
    )


def epochs_in(seconds: float, first: float, second: float) -> float:
    """Returns how many epochs over all images fit into a time, one at least.

    Args:
        seconds: that there are.
        first: seconds of the first epoch; what it took longer (compiling) is spent once.
        second: seconds of the second epoch, and of each further one.
    """
    return max(1.0, (seconds - max(0.0, first - second)) / second)


def seconds_of(history: list[Epoch]) -> float:
    """Returns what the training of a history's epochs took, scoring left out."""
    return sum(row.seconds for row in history)
