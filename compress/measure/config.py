"""Latency measurement settings."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

ROUNDS = 60


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Latency measurement, the same for all stages of a run."""

    threads: Annotated[int, Field(ge=1)] = 1
    """ONNX Runtime intra-op threads."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Batch size."""
    rounds: Annotated[int, Field(ge=3)] = ROUNDS
    """Rounds in which the files take turns; more rounds narrow the intervals."""
