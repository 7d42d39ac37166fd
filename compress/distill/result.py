"""Results of the distill stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.kd.result import Ablation
from compress.measure.results import Count


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """Student, teachers, and outcome of a distillation."""

    student: Mapping[str, Any]
    """Architecture and arguments."""
    teachers: tuple[str, ...]
    loss: str
    teacher_seconds: float
    """Time to compute stored teacher logits; live teachers count as training."""
    live_teachers: tuple[str, ...] = ()
    """Teachers that ran at every step, and whether float or int8 computed their logits."""
    epochs: Count
    unlabeled_images: Count = 0
    """Training images without labels, which only the teachers label."""
    alone: Ablation | None = None
    """The student trained on labels alone; None without --ablation."""
