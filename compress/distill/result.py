"""Results of the distill stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.measure.results import Count, Percent
from compress.measure.statistics import PairedDifference


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The student trained on labels alone for as long as distillation took."""

    top1: Percent
    """Top-1 on the test images in ONNX Runtime, in percent."""
    top1_ci95: tuple[Percent, Percent]
    gain: PairedDifference
    """The distilled student against this one, on the test images in ONNX Runtime."""
    epochs: Count
    seconds: float
    kd_epochs: Count
    kd_seconds: float
    """Time of the student's epochs and the teacher logits."""


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
    """The student trained alone; None without --ablation."""
