"""Distillation settings, shared by distillation, recovery after pruning, and QAT."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from compress.errors import CompressError
from compress.train.config import TrainConfig

SoftLoss = Literal["kd", "standardized", "dkd", "dist"]
HintLoss = Literal["attention", "features"]


@dataclass(frozen=True, kw_only=True)
class KDConfig:
    """Distillation loss and teacher logits."""

    soft_loss: SoftLoss = "kd"
    """Loss on the teacher logits: KL divergence (kd), KL divergence of standardized logits
    (standardized), decoupled (dkd), or relational (dist)."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the soft loss; the label loss has weight 1 - alpha."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Distillation temperature."""
    beta: Annotated[float, Field(ge=0)] = 2.0
    """Weight of the non-target classes (dkd)."""
    n_views: Annotated[int, Field(ge=0)] = 1
    """Views per image whose teacher logits are computed once and stored; 0 runs the teacher at
    every step."""
    fresh_views: bool = True
    """Show the student new augmented views in each epoch, all with the stored logits of the
    original image (averaged over views if n_views > 1); when off, cycle through the stored
    views."""
    hints: str = ""
    """Comma-separated STUDENT:TEACHER pairs of layers whose features are matched, e.g.
    blocks.2:layer3; uses the first teacher and requires n_views = 0."""
    hint_loss: HintLoss = "attention"
    """What hints match: attention maps (attention transfer) or features after a learned projection
    (FitNets)."""
    hint_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the hint loss."""


def check_kd(kd: KDConfig, train: TrainConfig) -> None:
    """Raises CompressError if stored teacher logits are incompatible with the other settings."""
    if kd.n_views and kd.hints:
        raise CompressError(
            "hints need the teacher's features, which are not stored; set kd.n_views = 0 "
            "(--n-views 0) to run the teacher at every step"
        )
    if kd.n_views and train.mixup:
        raise CompressError(
            "stored teacher logits (n_views > 0) do not match images blended by mixup; set "
            "kd.n_views = 0 (--n-views 0) to run the teacher at every step"
        )
    if kd.n_views and not kd.fresh_views and train.start_size < 1:
        raise CompressError(
            "stored views do not match resized images (start_size < 1); keep kd.fresh_views on, or "
            "set kd.n_views = 0 to run the teacher at every step"
        )


def loss_text(kd: KDConfig) -> str:
    """Describes the loss in one line: `0.5 kd (temperature 4) + 0.5 labels; stored logits, ...`."""
    terms = [
        f"{kd.alpha:g} {kd.soft_loss} (temperature {kd.temperature:g})",
        f"{1 - kd.alpha:g} labels",
    ]
    if kd.hints:
        terms.append(f"{kd.hint_weight:g} {kd.hint_loss} of {kd.hints}")
    views = "1 view per image" if kd.n_views == 1 else f"{kd.n_views} views per image"
    logits = f"stored teacher logits, {views}" if kd.n_views else "live teacher"
    return f"{' + '.join(terms)}; {logits}"
