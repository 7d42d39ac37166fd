"""Training settings; each stage that trains has its own defaults."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimizer, cosine schedule with linear warm-up, and regularization."""

    epochs: Annotated[int, Field(ge=0)] = 8
    """Training epochs."""
    min_steps: Annotated[int, Field(ge=0)] = 120
    """Minimum number of training steps; epochs are added to reach it unless epochs is 0."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Batch size; reduced automatically for small datasets."""
    optimizer: Literal["sgd", "muon"] = "sgd"
    """Optimizer. Compared with SGD, Muon needs about 1/20 of the learning rate and 100 times the
    weight decay."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay, except for biases and norm layers: an L2 penalty with SGD, decoupled with
    Muon."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Fraction of steps used for linear warm-up."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing."""
    clip_norm: Annotated[float, Field(ge=0)] = 5.0
    """Maximum gradient norm; 0 disables clipping."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """EMA decay per step; 0 disables it."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Mixup alpha of the Beta distribution; 0 disables it."""
    start_size: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Progressive resizing: initial image size as a fraction of the full size; 1 disables it."""
    data_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training images used in every epoch except the first and last: half of them
    have the highest loss, half are random."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many epochs without improvement in validation loss and restore the best
    weights; 0 disables it."""
    precision: Literal["auto", Precision] = "auto"
    """Training precision; auto picks the faster one on this machine."""
    compile: bool = False
    """Use torch.compile; takes a minute or more, worthwhile for long runs on a GPU."""


MUON = TrainConfig(optimizer="muon", momentum=0.95, weight_decay=0.1, data_fraction=0.5)
"""Base of each stage's training defaults."""
