"""Input of a stage other than its checkpoint and settings, and its product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from compress.architectures.spec import ModelSpec
from compress.checkpoint import QuantizedLayout
from compress.data.load import Data
from compress.kd.teachers import Teacher
from compress.measure.config import MeasureConfig


@dataclass(frozen=True, kw_only=True)
class Context:
    """Data, seed, folders and teachers of a stage."""

    data: Data
    seed: int
    measure: MeasureConfig
    folder: Path
    """Working folder of the stage; becomes its checkpoint folder."""
    store: Path
    """Folder for stored teacher logits, shared by the stages of a run."""
    teachers: tuple[Teacher, ...]
    """Empty in the teacher stage."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """What a stage hands back to the runner, which saves, exports and measures it.

    A stage that saved itself could forget a part; the runner does it once for all.
    """

    model: nn.Module
    """Takes pixels `[N, C, H, W]`, returns logits `[N, classes]`; on the CPU."""
    spec: ModelSpec
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """See `Description.shapes`."""
    removed: tuple[str, ...] = ()
    """See `Description.removed`."""
    quantized: QuantizedLayout | None = None
    """See `Description.quantized`."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain facts for the report, e.g. pruned widths."""
