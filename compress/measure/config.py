"""Latency measurement settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

ROUNDS = 60


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Latency measurement, the same for all stages of a run."""

    threads: Annotated[int, Field(ge=1, description="ONNX Runtime intra-op threads.")] = 1
    batch: Annotated[int, Field(ge=1, description="Batch size.")] = 1
    rounds: Annotated[
        int,
        Field(
            ge=3,
            description="Rounds in which the files take turns; more rounds narrow the intervals.",
        ),
    ] = ROUNDS
