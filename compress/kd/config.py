"""Settings of learning from a teacher; distillation, recovery after pruning and QAT share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from compress.errors import CompressError
from compress.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class KDConfig:
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
    n_views: Annotated[
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
            "commas, e.g. blocks.2:layer3; needs n_views = 0."
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


def check_kd(kd: KDConfig, train: TrainConfig) -> None:
    """Raises CompressError if the teacher's stored answers would not do."""
    if kd.n_views and kd.hints:
        raise CompressError(
            "hints compare features, which are not stored; set kd.n_views = 0 (--n-views 0) to "
            "ask the teacher at every step"
        )
    if kd.n_views and train.mixup:
        raise CompressError(
            "the teacher's stored answers (n_views > 0) are not to pictures that mixup blends; set "
            "kd.n_views = 0 (--n-views 0) to ask the teacher at every step"
        )
    if kd.n_views and not kd.fresh_views and train.start_size < 1:
        raise CompressError(
            "growing images (start_size < 1) are not the views that the teacher saw; leave "
            "kd.fresh_views on, or set kd.n_views = 0"
        )


def loss_text(kd: KDConfig) -> str:
    """Returns what is minimized, in a line: `0.5 kd (temperature 4) + 0.5 labels; ...`."""
    parts = [
        f"{kd.alpha:g} {kd.soft_loss} (temperature {kd.temperature:g})",
        f"{1 - kd.alpha:g} labels",
    ]
    if kd.hints:
        parts.append(f"{kd.hint_weight:g} {kd.hint_loss} of {kd.hints}")
    asked = f"once about {kd.n_views} view{'s' if kd.n_views > 1 else ''} of each image"
    return f"{' + '.join(parts)}; asked {asked if kd.n_views else 'at every step'}"
