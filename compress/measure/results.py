"""What a report says, as plain data with units in the names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter

from compress.cache import Measurements
from compress.checkpoint import HISTORY, REPORT_JSON
from compress.errors import CompressError
from compress.files import parse_json, read_text
from compress.host import Host

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0, lt=1e12)]


@dataclass(frozen=True, kw_only=True)
class _AloneDetails:
    """Of a distillation with its ablation: `Alone`."""

    top1: Percent
    top1_ci95: tuple[Percent, Percent]
    epochs: int
    seconds: float
    kd_epochs: int
    kd_seconds: float


@dataclass(frozen=True, kw_only=True)
class _ParityDetails:
    """Of each exported file: `Parity`."""

    top1_agreement: float
    max_difference: float
    n_images: int


@dataclass(frozen=True, kw_only=True)
class _CutDetails:
    """Of each cut of a pruning."""

    measured_ms: Positive
    predicted_ms: Positive
    top1_raw: Percent
    top1_batchnorm: Percent
    top1_trained: Percent


@dataclass(frozen=True, kw_only=True)
class _WidthDetails:
    """Of each layer of a pruning."""

    layer: str
    before: Count
    after: Count


@dataclass(frozen=True, kw_only=True)
class _Details:
    """What reports read of a stage's facts; there are others too."""

    reason: str | None = None
    findings: tuple[str, ...] = ()
    alone: _AloneDetails | None = None
    parity: Mapping[str, _ParityDetails] = field(default_factory=dict)
    precision: str | None = None
    unpruned_ms: Positive | None = None
    iterations: tuple[_CutDetails, ...] = ()
    widths: tuple[_WidthDetails, ...] = ()
    measurements: tuple[Measurements, ...] = ()


def _check_details(details: Mapping[str, Any]) -> Mapping[str, Any]:
    given = {name: value for name, value in details.items() if value is not None}
    TypeAdapter(_Details).validate_json(json.dumps(given), strict=True)  # nothing is converted
    missing = {entry.name for entry in fields(_Details)} & (set(details) - set(given))
    if details.get("iterations"):
        missing |= {"precision", "unpruned_ms", "widths"} - set(given)
    if missing:
        raise CompressError(f"details lack {', '.join(sorted(missing))}")
    return details


@dataclass(frozen=True, kw_only=True)
class OperatorSummary:
    """How much of an optimized graph runs on integers."""

    n_int8: Count
    n_float: Count
    n_conversions: Count
    """QuantizeLinear and DequantizeLinear that were not fused away."""
    gates_share: float
    """Percent of the time in activation functions and gates that are more than a clip."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage's result, measured on its ONNX file in ONNX Runtime."""

    stage: str
    file: str
    """Name of the measured ONNX file, beside this report."""
    parameters: Count
    macs: Count
    """Multiply-accumulates for one image."""
    size_bytes: Annotated[int, Field(ge=1)]
    top1: Percent
    """Percent, on the test split."""
    top1_ci95: tuple[Percent, Percent]
    balanced_top1: Percent | None = None
    """Mean over the classes, where they differ in size; see `Accuracy`."""
    n_images: Count
    latency_ms_p50: Positive
    latency_ms_p90: Positive
    speedup: Positive
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
    details: Annotated[Mapping[str, Any], AfterValidator(_check_details)]
    """Facts of this kind of stage."""
    host: Host

    def __post_init__(self) -> None:
        if self.file != Path(self.file).name:
            raise CompressError(f"file must be a name in the stage's folder, got {self.file!r}")
        low, high = self.top1_ci95
        if not low <= self.top1 <= high:
            raise CompressError(f"top1 must lie in its interval, got {self.top1}")
        if "onnxruntime" not in self.host.versions:
            raise CompressError("the host's versions lack ONNX Runtime's")


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


def read_history(folder: Path) -> list[dict[str, Any]] | None:
    """Reads what a stage's epochs came to, a row each; None if it trained none.

    Raises:
        CompressError: the file is damaged.
    """
    path = folder / HISTORY
    if not path.is_file():
        return None
    try:
        rows = [parse_json(line) for line in read_text(path).splitlines()]
        TypeAdapter(list[_HistoryRow]).validate_python(rows)
    except (OSError, ValueError):
        raise CompressError(f"{path} is damaged; make the stage anew") from None
    return rows


@dataclass(frozen=True, kw_only=True)
class _HistoryRow:
    """What reports read of it."""

    epoch: int
    validation_top1: Percent


def _read(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_python(parse_json(read_text(path)))
    except (OSError, ValueError):
        raise CompressError(f"{path} is missing or damaged; make it anew") from None
