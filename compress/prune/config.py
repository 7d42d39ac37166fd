"""Settings of stage prune."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from compress.kd.config import KDConfig, check_kd
from compress.train.config import MUON, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Remove the channels that cost most time for what they give, and recover the accuracy."""

    latency_ratio: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Latency to reach, as a share of the unpruned; 1: no limit. The default "
            "gives way where it cannot be met.",
        ),
    ] = 0.8
    latency_ms: Annotated[
        float, Field(ge=0, description="Latency to reach, milliseconds; 0: no limit.")
    ] = 0.0
    macs_ratio: Annotated[
        float, Field(gt=0, le=1, description="Multiply-accumulates to reach; 1: no limit.")
    ] = 1.0
    size_ratio: Annotated[
        float, Field(gt=0, le=1, description="Size of the file to reach; 1: no limit.")
    ] = 1.0
    target_precision: Annotated[
        Literal["int8", "float"],
        Field(description="The file whose latency and size count: quantized, or as it is."),
    ] = "int8"
    importance: Annotated[
        Literal[
            "l1", "l2", "batchnorm", "lamp", "fpgm", "taylor", "hessian", "activation", "random"
        ],
        Field(description="What a channel is worth."),
    ] = "taylor"
    iterations: Annotated[
        int, Field(ge=1, description="Cuts on the way; between them a short recovery.")
    ] = 2
    iteration_epochs: Annotated[
        int, Field(ge=0, description="Epochs of training after each cut but the last.")
    ] = 1
    min_channels_ratio: Annotated[
        float, Field(gt=0, le=1, description="Least share of its channels that a layer keeps.")
    ] = 0.1
    remove_blocks: Annotated[bool, Field(description="Whole residual blocks may go too.")] = True
    sparse_epochs: Annotated[
        int,
        Field(
            ge=0,
            description="Epochs before pruning in which a growing penalty empties the least "
            "important channels.",
        ),
    ] = 0
    kd: KDConfig = field(default=KDConfig())
    train: TrainConfig = field(
        default=dataclasses.replace(MUON, epochs=8, batch_size=256, lr=0.003)
    )

    def __post_init__(self) -> None:
        check_kd(self.kd, self.train)
