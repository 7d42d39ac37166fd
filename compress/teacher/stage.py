"""Stage teacher: train the large network, or load its weights; the baseline of the other stages."""

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
    "the teacher is untrained: random weights and 0 epochs; set weights in the card, pass a "
    "checkpoint with --teacher, or set teacher.train.epochs"
)


def run(spec: ModelSpec, weights: str, config: TeacherConfig, context: Context) -> Product:
    """Builds and trains the teacher.

    Args:
        spec: network to train.
        weights: see `load_weights`; empty for random initialization.
        config: settings of the stage.
        context: data, seed and folder.

    Raises:
        CompressError: the weights do not fit the network and there is no training.
    """
    torch.manual_seed(context.seed)
    model = build(spec)
    left_out = load_weights(model.network, spec.architecture, weights)
    if left_out and not config.train.epochs:
        raise CompressError(
            f"{weights} does not fit the network ({', '.join(left_out)}) and there is no training; "
            "set the stem in the card to that of the weights, use data with the same number of "
            "classes and channels, or set teacher.train.epochs"
        )
    if left_out:
        warn(f"  initialized at random, not from {weights}: {', '.join(left_out)}")
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
    findings = [str(finding) for finding in diagnose(history, len(spec.class_names), "teacher")]
    if not history and not weights:
        findings.append(UNTRAINED)
    for finding in findings:
        warn(f"  {finding}")
    details = {"epochs": len(history), "findings": findings}
    return Product(model=model, spec=spec, details=details)


def take(teacher: Teacher) -> Product:
    """Returns the checkpoint of a trained teacher, of any stage, unchanged."""
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
