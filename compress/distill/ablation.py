"""Ablation: the same student without a teacher, trained for the same time."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.checkpoint import MODEL_FILE
from compress.distill.result import Ablation
from compress.distributed import everywhere
from compress.kd.context import Context
from compress.kd.training import KDResult
from compress.measure.accuracy import accuracy, predict_split
from compress.measure.statistics import compare_paired
from compress.onnx_file import export_onnx
from compress.train.config import TrainConfig
from compress.train.epoch import label_loss
from compress.train.loop import train
from compress.train.schedule import epochs_for
from compress.train.state import Epoch


def train_alone(
    distilled: nn.Module, spec: ModelSpec, schedule: TrainConfig, kd: KDResult, context: Context
) -> Ablation:
    """Trains a new student with the same seed for as long as the distilled one took.

    A run of two epochs measures how long an epoch takes without a teacher.
    """
    schedule = dataclasses.replace(schedule, min_steps=0, patience=0)
    two_epochs = dataclasses.replace(schedule, epochs=2, start_size=1.0)
    _, (first, second) = _train(spec, two_epochs, "timed", context)

    kd_seconds = kd.teacher_seconds + total_seconds(kd.history)
    n_images = len(context.data.train)
    images = n_images * epochs_within(kd_seconds, first.seconds, second.seconds)
    epochs = epochs_for(images, schedule.data_fraction, n_images)
    model, history = _train(spec, dataclasses.replace(schedule, epochs=epochs), "alone", context)

    labels = context.data.test.labels.numpy()
    predicted = _predict(model, spec, context)
    scores = accuracy(predicted, labels)
    return Ablation(
        top1=scores.top1,
        top1_ci95=scores.top1_ci95,
        gain=compare_paired(_predict(distilled, spec, context) == labels, predicted == labels),
        epochs=epochs,
        seconds=total_seconds(history),
        kd_epochs=len(kd.history),
        kd_seconds=kd_seconds,
    )


def _train(
    spec: ModelSpec, config: TrainConfig, name: str, context: Context
) -> tuple[nn.Module, list[Epoch]]:
    """Trains a new student on labels alone, in a separate folder."""
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


def _predict(model: nn.Module, spec: ModelSpec, context: Context) -> np.ndarray:
    """Returns the class of every test image, int64 `[n_images]`, in ONNX Runtime."""
    path = context.folder / "alone" / MODEL_FILE
    export_onnx(model, spec, path, digest="", stage="distill")
    return predict_split(path, context.data.test)


def epochs_within(seconds: float, first: float, second: float) -> float:
    """Returns how many epochs over all images fit into a time, at least one.

    Args:
        seconds: time available.
        first: seconds of the first epoch; the excess over the second (compiling) is spent once.
        second: seconds of each further epoch.
    """
    return max(1.0, (seconds - max(0.0, first - second)) / second)


def total_seconds(history: Sequence[Epoch]) -> float:
    """Returns the training time of all epochs, without validation."""
    return sum(row.seconds for row in history)
