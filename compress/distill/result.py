"""The figures of stage distill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.measure.results import Count, Percent


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The student trained on the labels alone for the time that distillation took."""

    top1: Percent
    """Percent of the test images, scored in ONNX Runtime."""
    top1_ci95: tuple[Percent, Percent]
    epochs: Count
    seconds: float
    kd_epochs: Count
    kd_seconds: float
    """Of the student's epochs and the teacher logits."""


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """What was distilled into what."""

    student: Mapping[str, Any]
    """Architecture and arguments."""
    teachers: tuple[str, ...]
    loss: str
    teacher_seconds: float
    """Spent on stored teacher logits; live ones count as training."""
    epochs: Count
    alone: Ablation | None = None
    """With --ablation."""
