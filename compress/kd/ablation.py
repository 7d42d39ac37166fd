"""Ablation: a new network of the same shape, trained in another way for the same time."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from compress.architectures.spec import ModelSpec
from compress.checkpoint import MODEL_FILE
from compress.distributed import everywhere
from compress.kd.config import KDConfig
from compress.kd.context import Context, subfolder
from compress.kd.result import Ablation
from compress.kd.training import KDResult, train_with_kd
from compress.measure.accuracy import accuracy, predict_split
from compress.measure.statistics import compare_paired
from compress.onnx_file import export_onnx
from compress.train.config import TrainConfig
from compress.train.epoch import label_loss
from compress.train.loop import train
from compress.train.schedule import epochs_for


def ablate(
    model: nn.Module,
    make: Callable[[], nn.Module],
    spec: ModelSpec,
    schedule: TrainConfig,
    context: Context,
    *,
    seconds: float,
    kd: KDConfig | None = None,
) -> Ablation:
    """Trains a new network with the same seed, and compares a trained one with it.

    A run of two epochs measures how long an epoch takes.

    Args:
        model: the trained network.
        make: returns a new one.
        spec: of both.
        schedule: for the new one; its epochs follow from the time.
        context: data, seed, folders, and teachers.
        seconds: time available, for teacher logits too.
        kd: distillation loss; None: labels only.
    """
    name = "alone" if kd is None else "taught"
    schedule = dataclasses.replace(schedule, min_steps=0, patience=0)
    two_epochs = dataclasses.replace(schedule, epochs=2, start_size=1.0)
    _, timed = _train(make, kd, two_epochs, subfolder(context, f"{name}-timed"))
    first, second = timed.history

    data = context.data if kd is None else context.data.with_unlabeled()
    left = seconds - timed.teacher_seconds
    images = len(data.train) * epochs_within(left, first.seconds, second.seconds)
    epochs = epochs_for(images, schedule.data_fraction, len(data.train))
    context = subfolder(context, name)
    new, trained = _train(make, kd, dataclasses.replace(schedule, epochs=epochs), context)

    labels = context.data.test.labels.numpy()
    predicted = _predict(new, spec, context)
    scores = accuracy(predicted, labels)
    return Ablation(
        top1=scores.top1,
        top1_ci95=scores.top1_ci95,
        gain=compare_paired(_predict(model, spec, context) == labels, predicted == labels),
        epochs=epochs,
        seconds=trained.seconds,
        available_seconds=seconds,
    )


def _train(
    make: Callable[[], nn.Module], kd: KDConfig | None, schedule: TrainConfig, context: Context
) -> tuple[nn.Module, KDResult]:
    torch.manual_seed(context.seed)
    model, title = make(), f"ablation, {context.folder.name}"
    if kd is None:
        return model, everywhere(train_on_labels, model, schedule, context, title=title)
    return model, everywhere(train_with_kd, model, kd, schedule, context, "distill", title=title)


def train_on_labels(
    model: nn.Module, schedule: TrainConfig, context: Context, *, title: str
) -> KDResult:
    """Trains a model in place without teachers."""
    history = train(
        model,
        context.data,
        schedule,
        loss=label_loss(schedule.label_smoothing),
        seed=context.seed,
        folder=context.folder,
        title=title,
    )
    return KDResult(history=history, findings=[], teacher_seconds=0.0)


def _predict(model: nn.Module, spec: ModelSpec, context: Context) -> np.ndarray:
    """Returns the class of every test image, int64 `[n_images]`, in ONNX Runtime."""
    path = context.folder / MODEL_FILE
    export_onnx(model, spec, path, digest="", stage="ablation")
    return predict_split(path, context.data.test)


def epochs_within(seconds: float, first: float, second: float) -> float:
    """Returns how many epochs over all images fit into a time, at least one.

    Args:
        seconds: time available.
        first: seconds of the first epoch; the excess over the second (compiling) is spent once.
        second: seconds of each further epoch.
    """
    return max(1.0, (seconds - max(0.0, first - second)) / second)
