"""Latency measurement settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Latency measurement, the same for all stages of a run."""

    threads: Annotated[int, Field(ge=1, description="ONNX Runtime intra-op threads.")] = 1
    batch: Annotated[int, Field(ge=1, description="Batch size.")] = 1
