"""Settings of stage quantize."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from compress.kd.config import KDConfig, check_kd
from compress.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """int8 weights and activations, ranges from calibration images."""

    method: Annotated[
        Literal["auto", "ptq", "qat"],
        Field(
            description="ptq: ranges and the repairs named, no training; qat: then train with "
            "rounding on; auto: ptq, and while it loses more than max_drop on validation images: "
            "repairs, then float for the layers that hurt most, then qat."
        ),
    ] = "auto"
    calib: Annotated[
        int,
        Field(
            ge=1,
            description="Training images that set the ranges of activations; all if there are "
            "fewer.",
        ),
    ] = 512
    observer: Annotated[
        Literal["minmax", "average", "percentile", "entropy", "mse", "auto"],
        Field(
            description="How the range of an activation is chosen; auto tries all on validation "
            "images."
        ),
    ] = "mse"
    weights: Annotated[
        Literal["max", "mse"],
        Field(description="A weight's scale: from the largest one, or of least squared error."),
    ] = "mse"
    equalize: Annotated[
        bool, Field(description="Balance channel ranges between layers (exact for Relu).")
    ] = False
    correct_biases: Annotated[
        bool,
        Field(
            description="Shift biases so that layers keep their mean outputs; auto tries it anyway."
        ),
    ] = False
    learn_rounding: Annotated[
        bool, Field(description="AdaRound: learn for each weight whether to round up or down.")
    ] = False
    max_drop: Annotated[
        float,
        Field(ge=0, description="Points of validation top-1 that auto lets int8 lose."),
    ] = 0.3
    portable: Annotated[
        bool,
        Field(
            description="7-bit weights in layers whose sums would saturate on chips without VNNI."
        ),
    ] = False
    kd: KDConfig = field(default=KDConfig())
    train: TrainConfig = field(
        # Rounding to 256 levels leaves nothing of bf16's 8 bits to spare.
        default=TrainConfig(epochs=2, batch_size=128, lr=0.003, precision="fp32")
    )

    def __post_init__(self) -> None:
        check_kd(self.kd, self.train)
