"""Settings of the prune stage."""

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

    latency_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Target latency as a fraction of the unpruned model's; 1 means no limit. The default is
    relaxed if it cannot be met."""
    latency_ms: Annotated[float, Field(ge=0)] = 0.0
    """Target latency in milliseconds; 0 means no limit."""
    macs_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Target multiply-accumulates as a fraction of the unpruned model's; 1 means no limit."""
    size_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Target file size as a fraction of the unpruned model's; 1 means no limit."""
    target_precision: Precision = "int8"
    """Precision of the ONNX file that the latency and size targets refer to."""
    importance: Importance = "taylor"
    """Channel importance criterion."""
    iterations: Annotated[int, Field(ge=1)] = 2
    """Pruning iterations, with brief fine-tuning in between."""
    iteration_epochs: Annotated[int, Field(ge=0)] = 1
    """Fine-tuning epochs after each iteration except the last."""
    min_channels_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Minimum fraction of its channels that a layer keeps."""
    remove_blocks: bool = True
    """Allow removing whole residual blocks."""
    sparse_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs of sparse training before pruning, with a growing penalty on the least important
    channels."""
    ablation: bool = False
    """Also train the pruned network from scratch, with and without teachers, each for the time of
    distilling and pruning, and report whether that was worth it."""
    kd: KDConfig = field(default=KDConfig())
    train: TrainConfig = field(
        default=dataclasses.replace(MUON, epochs=8, batch_size=256, lr=0.003)
    )

    def __post_init__(self) -> None:
        check_kd(self.kd, self.train)
