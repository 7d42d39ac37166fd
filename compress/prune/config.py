"""Settings of the prune stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from compress.kd.config import KDConfig, check_kd
from compress.train.config import MUON, TrainConfig

Importance = Literal[
    "l1", "l2", "batchnorm", "lamp", "fpgm", "taylor", "hessian", "activation", "random"
]
Precision = Literal["int8", "float"]


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Remove the channels that cost the most latency for the least accuracy, then fine-tune."""

    latency_ratio: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Target latency as a fraction of the unpruned model's; 1 means no limit. "
            "The default is relaxed if it cannot be met.",
        ),
    ] = 0.8
    latency_ms: Annotated[
        float, Field(ge=0, description="Target latency in milliseconds; 0 means no limit.")
    ] = 0.0
    macs_ratio: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Target multiply-accumulates as a fraction of the unpruned model's; 1 "
            "means no limit.",
        ),
    ] = 1.0
    size_ratio: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Target file size as a fraction of the unpruned model's; 1 means no limit.",
        ),
    ] = 1.0
    target_precision: Annotated[
        Precision,
        Field(description="Precision of the ONNX file that the latency and size targets refer to."),
    ] = "int8"
    importance: Annotated[Importance, Field(description="Channel importance criterion.")] = "taylor"
    iterations: Annotated[
        int, Field(ge=1, description="Pruning iterations, with brief fine-tuning in between.")
    ] = 2
    iteration_epochs: Annotated[
        int, Field(ge=0, description="Fine-tuning epochs after each iteration except the last.")
    ] = 1
    min_channels_ratio: Annotated[
        float, Field(gt=0, le=1, description="Minimum fraction of its channels that a layer keeps.")
    ] = 0.1
    remove_blocks: Annotated[bool, Field(description="Allow removing whole residual blocks.")] = (
        True
    )
    sparse_epochs: Annotated[
        int,
        Field(
            ge=0,
            description="Epochs of sparse training before pruning, with a growing penalty on the "
            "least important channels.",
        ),
    ] = 0
    kd: KDConfig = field(default=KDConfig())
    train: TrainConfig = field(
        default=dataclasses.replace(MUON, epochs=8, batch_size=256, lr=0.003)
    )

    def __post_init__(self) -> None:
        check_kd(self.kd, self.train)
