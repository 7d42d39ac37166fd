"""Stage distill: train a smaller student on the teacher's answers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from compress.distill.config import GuidanceConfig, check_views, loss_text
from compress.train.config import MUON, TrainConfig

if TYPE_CHECKING:
    from compress.architectures.spec import ModelSpec
    from compress.context import Context, Product


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Train the student with the teacher's help."""

    guidance: GuidanceConfig = field(default=GuidanceConfig())
    train: TrainConfig = field(
        default=dataclasses.replace(MUON, epochs=12, batch_size=256, lr=0.01)
    )
    ablation: Annotated[
        bool,
        Field(
            description="Also train the student alone for the same time, and report whether the "
            "teacher paid."
        ),
    ] = False

    def __post_init__(self) -> None:
        check_views(self.guidance, self.train)


def run(student: ModelSpec, config: DistillConfig, context: Context) -> Product:
    """Trains a new student from the context's teachers.

    Args:
        student: the student's network.
        config: loss and schedule.
        context: data, seed, folder and the teachers.
    """
    import torch

    from compress.architectures.build import build
    from compress.context import Product
    from compress.distill.guidance import train_guided
    from compress.distributed import everywhere

    torch.manual_seed(context.seed)
    model = build(student)
    guided = everywhere(train_guided, model, config.guidance, config.train, context, "distill")
    findings = [str(finding) for finding in guided.findings]
    details: dict[str, Any] = {
        "student": {"architecture": student.architecture, **student.arguments},
        "teachers": [f"{teacher.path} (weight {teacher.weight:g})" for teacher in context.teachers],
        "loss": loss_text(config.guidance),
        "asking_seconds": guided.asking_seconds,
        "epochs": len(guided.history),
        "findings": findings,
    }
    if config.ablation:
        from compress.distill.ablation import train_alone

        details["alone"] = dataclasses.asdict(train_alone(student, config.train, guided, context))
    return Product(model=model, spec=student, details=details)
