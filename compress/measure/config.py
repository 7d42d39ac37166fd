"""Settings of the yardstick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How latency is measured; the same for every stage of a run."""

    threads: Annotated[int, Field(ge=1, description="Threads of ONNX Runtime's operators.")] = 1
    batch: Annotated[int, Field(ge=1, description="Images a run.")] = 1
