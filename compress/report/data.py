"""What a report says, as plain data with units in the names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from compress.errors import CompressError
from compress.measure.host import Host

T = TypeVar("T")

REPORT_JSON, REPORT_MD, REPORT_HTML = "report.json", "report.md", "report.html"
HISTORY = "history.jsonl"
"""A row for each epoch of a stage that trained."""


@dataclass(frozen=True, kw_only=True)
class OperatorSummary:
    """How much of an optimised graph runs on integers."""

    n_int8: int
    n_float: int
    n_conversions: int
    """QuantizeLinear and DequantizeLinear that were not fused away."""
    gates_share: float
    """Percent of the time in activation functions and gates that are more than a clip."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage's result, measured on its ONNX file in ONNX Runtime."""

    stage: str
    file: str
    """Name of the measured ONNX file, beside this report."""
    parameters: int
    macs: int
    """Multiply-accumulates for one image."""
    size_bytes: int
    top1: float
    """Percent, on the test split."""
    top1_ci95: tuple[float, float]
    n_images: int
    latency_ms_p50: float
    latency_ms_p90: float
    speedup: float
    """How many times faster than the teacher's file, measured side by side."""
    speedup_ci95: tuple[float, float]
    step_speedup_ci95: tuple[float, float] | None = None
    """How many times faster than the file that the stage started from, side by side; None if that
    is the teacher's file or this one."""
    n_runs: int
    operators: OperatorSummary
    batch: int
    threads: int
    seconds: float
    """The stage took, without measuring; with what was done before it was killed, if it was."""
    created: str
    """UTC, ISO 8601."""
    digest: str
    parent: str | None
    details: Mapping[str, Any]
    """Facts of this kind of stage."""
    host: Host


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The stages of a run, from the teacher to the file that ships."""

    name: str
    data: str
    stages: tuple[StageReport, ...]
    ship: str
    """Path of the file to ship, relative to the report."""
    verdict: str
    remarks: tuple[str, ...]


def read_stage_report(folder: Path) -> StageReport:
    """Reads the report in a stage's folder.

    Raises:
        CompressError: it is missing or damaged.
    """
    return _read(folder / REPORT_JSON, StageReport)


def read_run_report(path: Path) -> RunReport:
    """Reads a run's report file.

    Raises:
        CompressError: it is missing or damaged.
    """
    return _read(path, RunReport)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise CompressError(f"{path} is missing or damaged; make it anew") from None
