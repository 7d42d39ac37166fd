"""The teacher stage: trains or loads the large network, the baseline of later stages."""

import torch

from compress.architectures.build import build
from compress.architectures.sources import OBJECT
from compress.architectures.weights import load_weights
from compress.checkpoint import Checkpoint, Product, Start
from compress.distributed import everywhere
from compress.errors import CompressError
from compress.int8.restore import load_model
from compress.kd.context import Context
from compress.log import warn
from compress.teacher.config import TeacherConfig
from compress.teacher.result import TeacherResult
from compress.train.diagnosis import diagnose
from compress.train.epoch import label_loss
from compress.train.loop import train

UNTRAINED = (
    "the teacher is untrained: random weights and 0 epochs; set weights in the card, pass a "
    "checkpoint with --teacher, or set teacher.train.epochs"
)


def run(start: Start, config: TeacherConfig, context: Context) -> Product:
    """Trains the teacher, or returns a trained one unchanged.

    Raises:
        CompressError: the weights do not fit the network, and epochs is 0.
    """
    if isinstance(start, Checkpoint):
        return _take(start)
    torch.manual_seed(context.seed)
    model = build(start.spec)
    left_out = load_weights(model.network, start.spec.architecture, start.weights)
    if left_out and not config.train.epochs:
        raise CompressError(
            f"{start.weights} does not fit the network ({', '.join(left_out)}), and "
            "teacher.train.epochs is 0; use the weights' stem in the card, use data with the same "
            "number of classes and channels, or train for at least one epoch"
        )
    if left_out:
        warn(f"  new, not from {start.weights}: {', '.join(left_out)}")
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
    classes = len(start.spec.class_names)
    findings = [str(finding) for finding in diagnose(history, classes, "teacher")]
    given = start.weights or start.spec.architecture.startswith(OBJECT)
    if not history and not given:
        findings.append(UNTRAINED)
    for finding in findings:
        warn(f"  {finding}")
    result = TeacherResult(epochs=len(history))
    return Product(model=model, spec=start.spec, result=result, findings=tuple(findings))


def _take(checkpoint: Checkpoint) -> Product:
    description = checkpoint.description
    return Product(
        model=load_model(checkpoint),
        spec=description.spec,
        shapes=description.shapes,
        removed=description.removed,
        quantized=description.quantized,
        result=TeacherResult(taken_from=str(checkpoint.folder)),
    )
