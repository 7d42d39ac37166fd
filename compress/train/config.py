"""Settings of a training run; each stage that trains carries one with its own defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """An optimizer on a cosine schedule with linear warm-up."""

    epochs: Annotated[int, Field(ge=0, description="Passes over the training images.")] = 8
    min_steps: Annotated[
        int,
        Field(
            ge=0,
            description="Small sets get more epochs than `epochs`, up to this many steps; 0 epochs "
            "stay 0.",
        ),
    ] = 120
    batch_size: Annotated[
        int, Field(ge=2, description="Images a step; small sets get smaller batches.")
    ] = 128
    optimizer: Annotated[
        Literal["sgd", "muon"],
        Field(
            description="SGD, or Muon, which learns more from a step and wants a learning rate of "
            "a twentieth and a weight decay a hundred times as large."
        ),
    ] = "sgd"
    lr: Annotated[float, Field(gt=0, description="Peak learning rate.")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="Nesterov momentum.")] = 0.9
    weight_decay: Annotated[
        float,
        Field(
            ge=0,
            description="What pulls weights to zero, not biases or norms: SGD's L2 penalty, "
            "Muon's share of the learning rate.",
        ),
    ] = 5e-4
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="Share of all steps with a rising learning rate.")
    ] = 0.15
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="Probability mass spread over all classes.")
    ] = 0.1
    clip_norm: Annotated[
        float, Field(ge=0, description="Largest gradient norm; 0 does not clip.")
    ] = 5.0
    ema: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Decay of averaged weights, a step, after a warm-up; 0 keeps no average.",
        ),
    ] = 0.0
    mixup: Annotated[
        float, Field(ge=0, description="Alpha of mixup's Beta distribution; 0 mixes nothing.")
    ] = 0.0
    start_size: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Image side of the first epochs as a share of the full one; "
            "it grows to 1 by the last epoch.",
        ),
    ] = 1.0
    data_fraction: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Of the training images that an epoch shows, the first and the last apart: "
            "half of them are those with the highest loss, the others are drawn from the rest.",
        ),
    ] = 1.0
    patience: Annotated[
        int,
        Field(
            ge=0,
            description="Stop after so many epochs without a lower validation loss, and take the "
            "best epoch's weights; 0 never stops early.",
        ),
    ] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="Arithmetic of training; auto times both for a few steps."),
    ] = "auto"
    compile: Annotated[
        bool,
        Field(
            description="Compile the network first (torch.compile): a minute or more that pays in "
            "long trainings on a GPU."
        ),
    ] = False


MUON = TrainConfig(optimizer="muon", momentum=0.95, weight_decay=0.1, data_fraction=0.5)
"""What the stages' schedules start from."""
