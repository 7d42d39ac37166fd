"""The distill stage: trains a small student from scratch with teachers."""

import functools

import torch

from compress.architectures.build import build
from compress.checkpoint import NewNetwork, Product, Start
from compress.distill.config import DistillConfig
from compress.distill.result import DistillResult
from compress.distributed import everywhere
from compress.kd.ablation import ablate
from compress.kd.config import loss_text
from compress.kd.context import Context
from compress.kd.training import train_with_kd


def run(start: Start, config: DistillConfig, context: Context) -> Product:
    """Trains a new student with the context's teachers."""
    assert isinstance(start, NewNetwork)
    student = start.spec
    torch.manual_seed(context.seed)
    model = build(student)
    kd = everywhere(train_with_kd, model, config.kd, config.train, context, "distill")
    alone = None
    if config.ablation:
        make = functools.partial(build, student)
        alone = ablate(model, make, student, config.train, context, seconds=kd.seconds)
    return Product(
        model=model,
        spec=student,
        result=DistillResult(
            student={"architecture": student.architecture, **student.arguments},
            teachers=tuple(
                f"{teacher.path} (weight {teacher.weight:g})" for teacher in context.teachers
            ),
            loss=loss_text(config.kd),
            teacher_seconds=kd.teacher_seconds,
            live_teachers=kd.live_teachers,
            epochs=len(kd.history),
            unlabeled_images=len(context.data.unlabeled or ()),
            alone=alone,
        ),
        findings=tuple(str(finding) for finding in kd.findings),
    )
