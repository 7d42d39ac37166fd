"""Reports as plain data, with units in the names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from compress.cache import Measurements
from compress.checkpoint import HISTORY
from compress.errors import CompressError
from compress.files import parse_json, read_text
from compress.host import Host
from compress.measure.config import ROUNDS
from compress.measure.statistics import PairedDifference, unpack_bools

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0, lt=1e12)]


@dataclass(frozen=True, kw_only=True)
class OperatorSummary:
    """How much of an optimized graph is int8."""

    n_int8: Count
    n_float: Count
    n_conversions: Count
    """QuantizeLinear and DequantizeLinear that were not fused away."""
    gates_share: float
    """Percent of the time spent in activation functions and gates other than clips."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage's result, measured on its ONNX file in ONNX Runtime."""

    stage: str
    file: str
    """Name of the measured ONNX file, in the folder of this report."""
    parameters: Count
    macs: Count
    """Multiply-accumulates for one image."""
    size_bytes: Annotated[int, Field(ge=1)]
    top1: Percent
    """Top-1 on the test split, in percent."""
    top1_ci95: tuple[Percent, Percent]
    change: PairedDifference | None = None
    """Against the teacher on the test images; None for itself, or if its images are prepared
    differently."""
    step_change: PairedDifference | None = None
    """Against the file that the stage started from; None if that is the teacher's or this one."""
    balanced_top1: Percent | None = None
    """Mean over the classes, if they are imbalanced; see `Accuracy`."""
    n_images: Count
    test_images: str = ""
    """Identifies the test images and their order; see `images_digest`."""
    correct: str = ""
    """Which of them are classified correctly; see `pack_bools`."""
    latency_ms_p50: Positive
    latency_ms_p90: Positive
    """Steady, like p50: back to back, with warm caches."""
    latency_ms_p99: Positive | None = None
    """None with fewer than 1000 runs."""
    cold_latency_ms_p50: Positive | None = None
    """After other work has filled the caches."""
    load_ms: Positive | None = None
    """To load the file and optimize its graph."""
    first_ms: Positive | None = None
    """The first run after loading."""
    memory_bytes: Count | None = None
    """Peak memory beyond that before loading; None where the system does not tell."""
    images_per_second: Mapping[Annotated[int, Field(ge=1)], Positive] = field(default_factory=dict)
    """By batch size, steady."""
    speedup: Positive
    """Speedup over the teacher's file, with both taking turns."""
    speedup_ci95: tuple[float, float]
    speedup_noise: float | None = None
    """By how much the speed of a file's copy may differ from its own, measured alongside."""
    step_speedup_ci95: tuple[float, float] | None = None
    """Speedup over the file that the stage started from, taking turns; None if that is the
    teacher's file or this one."""
    n_runs: int
    operators: OperatorSummary
    batch: int
    threads: int
    rounds: int = ROUNDS
    seconds: float
    """Duration of the stage without its measurements, including what ran before an interruption."""
    created: str
    """UTC, ISO 8601."""
    digest: str
    parent: str | None
    findings: tuple[str, ...]
    """Problems that the stage reports."""
    measurements: tuple[Measurements, ...]
    """Timings that decided its result."""
    result: Any
    """The stage's own results, of the `result` type in the table of stages."""
    host: Host

    def __post_init__(self) -> None:
        if self.file != Path(self.file).name:
            raise CompressError(f"file must be a name in the stage's folder, got {self.file!r}")
        low, high = self.top1_ci95
        if not low <= self.top1 <= high:
            raise CompressError(f"top1 must be within its interval, got {self.top1}")
        if self.correct:
            unpack_bools(self.correct, self.n_images)
        if "onnxruntime" not in self.host.versions:
            raise CompressError("the host's versions do not include ONNX Runtime")


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run, from the teacher to the file that ships."""

    name: str
    data: str
    stages: tuple[StageReport, ...]
    ship: str
    """Path of the file to ship, relative to the report."""
    verdict: str
    remarks: tuple[str, ...]


def read_typed(kind: type[T], path: Path, *, remedy: str) -> T | None:
    """Reads a dataclass from JSON; None if there is no such file.

    Raises:
        CompressError: it is damaged; the message ends with the remedy.
    """
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_python(parse_json(read_text(path)))
    except (OSError, ValueError):
        raise CompressError(f"{path} is damaged; {remedy}") from None


def read_history(folder: Path) -> list[dict[str, Any]] | None:
    """Reads the training history of a stage, a row per epoch; None if it did not train.

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
        raise CompressError(f"{path} is damaged; run the stage again") from None
    return rows


@dataclass(frozen=True, kw_only=True)
class _HistoryRow:
    """The fields that reports read."""

    epoch: int
    image_size: Count
    loss: float
    train_top1: Percent
    validation_top1: Percent
    images_per_second: float
    seconds: float
    precision: str
