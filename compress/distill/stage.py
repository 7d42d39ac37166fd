"""Stage distill: train a small student from scratch with teachers."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.distill.ablation import train_alone
from compress.distill.config import DistillConfig
from compress.distributed import everywhere
from compress.kd.config import loss_text
from compress.kd.context import Context, Product
from compress.kd.training import train_with_kd


def run(student: ModelSpec, config: DistillConfig, context: Context) -> Product:
    """Trains a new student with the context's teachers.

    Args:
        student: network to train.
        config: settings of the stage.
        context: data, seed, folder and the teachers.
    """
    torch.manual_seed(context.seed)
    model = build(student)
    kd = everywhere(train_with_kd, model, config.kd, config.train, context, "distill")
    findings = [str(finding) for finding in kd.findings]
    details: dict[str, Any] = {
        "student": {"architecture": student.architecture, **student.arguments},
        "teachers": [f"{teacher.path} (weight {teacher.weight:g})" for teacher in context.teachers],
        "loss": loss_text(config.kd),
        "teacher_seconds": kd.teacher_seconds,
        "epochs": len(kd.history),
        "findings": findings,
    }
    if config.ablation:
        details["alone"] = dataclasses.asdict(train_alone(student, config.train, kd, context))
    return Product(model=model, spec=student, details=details)
