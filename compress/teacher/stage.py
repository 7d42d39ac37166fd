"""Stage teacher: train the large network, or load its weights, as the yardstick for the rest."""

from __future__ import annotations

import torch

from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.architectures.weights import load_weights
from compress.distributed import everywhere
from compress.errors import CompressError
from compress.int8.restore import load_model
from compress.kd.context import Context, Product
from compress.kd.teachers import Teacher
from compress.log import warn
from compress.teacher.config import TeacherConfig
from compress.train.diagnosis import diagnose
from compress.train.epoch import label_loss
from compress.train.loop import train

UNTRAINED = (
    "the teacher was never trained: zero epochs from random weights; name weights in the card, a "
    "checkpoint with --teacher, or epochs with --set teacher.train.epochs=N"
)


def run(spec: ModelSpec, weights: str, config: TeacherConfig, context: Context) -> Product:
    """Builds and trains the teacher.

    Args:
        spec: the network.
        weights: see `load_weights`; empty starts from random ones.
        config: its schedule.
        context: data, seed and folder.
    """
    torch.manual_seed(context.seed)
    model = build(spec)
    left_out = load_weights(model.network, spec.architecture, weights)
    if left_out and not config.train.epochs:
        raise CompressError(
            f"{weights} does not fit, and zero epochs train nothing: {', '.join(left_out)}; "
            "the card's stem (small or large), the number of classes or of channels differs"
        )
    if left_out:
        warn(f"  not taken from {weights}: {', '.join(left_out)}")
    history = everywhere(
        train,
        model,
        context.data,
        config.train,
        loss=label_loss(config.train.label_smoothing),
        seed=context.seed,
        folder=context.folder,
        title="teacher",
    )
    findings = [str(finding) for finding in diagnose(history, len(spec.class_names))]
    if not history and not weights:
        findings.append(UNTRAINED)
        warn(f"  {UNTRAINED}")
    details = {"epochs": len(history), "findings": findings}
    return Product(model=model, spec=spec, details=details)


def take(teacher: Teacher) -> Product:
    """Returns a trained teacher as it is.

    Args:
        teacher: a checkpoint of any stage.
    """
    assert teacher.checkpoint is not None
    description = teacher.checkpoint.description
    return Product(
        model=load_model(teacher.checkpoint),
        spec=description.spec,
        shapes=description.shapes,
        removed=description.removed,
        quantized=description.quantized,
        details={"taken_from": str(teacher.path)},
    )
