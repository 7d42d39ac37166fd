"""Settings of learning from a teacher; distillation, recovery after pruning and QAT share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from compress.errors import CompressError
from compress.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How the teacher's answers enter the loss."""

    soft_loss: Annotated[
        Literal["kd", "standardized", "dkd", "dist"],
        Field(
            description="What compares with the teacher's answers: Hinton's divergence, the same "
            "of standardized logits, decoupled (DKD), or relations (DIST)."
        ),
    ] = "kd"
    alpha: Annotated[
        float,
        Field(ge=0, le=1, description="Weight of the teacher's answers; the labels get the rest."),
    ] = 0.5
    temperature: Annotated[
        float, Field(gt=0, description="Softens both outputs before they are compared.")
    ] = 4.0
    beta: Annotated[
        float, Field(ge=0, description="DKD: weight of what is said about the wrong classes.")
    ] = 2.0
    views: Annotated[
        int,
        Field(
            ge=0,
            description="Views of each image that the teacher is asked about once; 0 asks it anew "
            "at every step.",
        ),
    ] = 1
    fresh_views: Annotated[
        bool,
        Field(
            description="The student sees new views in each epoch, and the teacher's answer (to "
            "the picture as it is; the mean, if it was asked about more views) stands for them "
            "all; off: it sees the views that the teacher saw, in turn."
        ),
    ] = True
    hints: Annotated[
        str,
        Field(
            description="Inner layers to compare with the first teacher's, STUDENT:TEACHER by "
            "commas, e.g. blocks.2:layer3; needs views = 0."
        ),
    ] = ""
    hint_loss: Annotated[
        Literal["attention", "features"],
        Field(
            description="Compare where features are (attention transfer), or the features "
            "themselves through a learned projection (FitNets)."
        ),
    ] = "attention"
    hint_weight: Annotated[
        float, Field(gt=0, description="Weight of the hints beside the other losses.")
    ] = 1.0


def check_views(guidance: GuidanceConfig, train: TrainConfig) -> None:
    """Raises CompressError if the teacher's stored answers would not do."""
    if guidance.views and guidance.hints:
        raise CompressError(
            "hints compare features, which are not stored; set guidance.views = 0 (--views 0) to "
            "ask the teacher at every step"
        )
    if guidance.views and train.mixup:
        raise CompressError(
            "the teacher's stored answers (views > 0) are not to pictures that mixup blends; set "
            "guidance.views = 0 (--views 0) to ask the teacher at every step"
        )
    if guidance.views and not guidance.fresh_views and train.first_size < 1:
        raise CompressError(
            "growing images (first_size < 1) are not the views that the teacher saw; leave "
            "guidance.fresh_views on, or set guidance.views = 0"
        )


def loss_text(guidance: GuidanceConfig) -> str:
    """Returns what is minimized, in a line: `0.5 kd (temperature 4) + 0.5 labels; ...`."""
    parts = [
        f"{guidance.alpha:g} {guidance.soft_loss} (temperature {guidance.temperature:g})",
        f"{1 - guidance.alpha:g} labels",
    ]
    if guidance.hints:
        parts.append(f"{guidance.hint_weight:g} {guidance.hint_loss} of {guidance.hints}")
    asked = f"once about {guidance.views} view{'s' if guidance.views > 1 else ''} of each image"
    return f"{' + '.join(parts)}; asked {asked if guidance.views else 'at every step'}"
