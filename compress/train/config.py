"""Training settings; each stage that trains has its own defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimizer, cosine schedule with linear warm-up, and regularization."""

    epochs: Annotated[int, Field(ge=0, description="Training epochs.")] = 8
    min_steps: Annotated[
        int,
        Field(
            ge=0,
            description="Minimum number of training steps; epochs are added to reach it unless "
            "epochs is 0.",
        ),
    ] = 120
    batch_size: Annotated[
        int, Field(ge=2, description="Batch size; reduced automatically for small datasets.")
    ] = 128
    optimizer: Annotated[
        Literal["sgd", "muon"],
        Field(
            description="Optimizer. Compared with SGD, Muon needs about 1/20 of the learning rate "
            "and 100 times the weight decay."
        ),
    ] = "sgd"
    lr: Annotated[float, Field(gt=0, description="Peak learning rate.")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="Nesterov momentum.")] = 0.9
    weight_decay: Annotated[
        float,
        Field(
            ge=0,
            description="Weight decay, except for biases and norm layers: an L2 penalty with SGD, "
            "decoupled with Muon.",
        ),
    ] = 5e-4
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="Fraction of steps used for linear warm-up.")
    ] = 0.15
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="Label smoothing.")] = 0.1
    clip_norm: Annotated[
        float, Field(ge=0, description="Maximum gradient norm; 0 disables clipping.")
    ] = 5.0
    ema: Annotated[float, Field(ge=0, lt=1, description="EMA decay per step; 0 disables it.")] = 0.0
    mixup: Annotated[
        float, Field(ge=0, description="Mixup alpha of the Beta distribution; 0 disables it.")
    ] = 0.0
    start_size: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Progressive resizing: initial image size as a fraction of the full size; "
            "1 disables it.",
        ),
    ] = 1.0
    data_fraction: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Fraction of the training images used in every epoch except the first and "
            "last: half of them have the highest loss, half are random.",
        ),
    ] = 1.0
    patience: Annotated[
        int,
        Field(
            ge=0,
            description="Stop after this many epochs without improvement in validation loss and "
            "restore the best weights; 0 disables it.",
        ),
    ] = 0
    precision: Annotated[
        Literal["auto", Precision],
        Field(description="Training precision; auto picks the faster one on this machine."),
    ] = "auto"
    compile: Annotated[
        bool,
        Field(
            description="Use torch.compile; takes a minute or more, worthwhile for long runs on a "
            "GPU."
        ),
    ] = False


MUON = TrainConfig(optimizer="muon", momentum=0.95, weight_decay=0.1, data_fraction=0.5)
"""Base of each stage's training defaults."""
