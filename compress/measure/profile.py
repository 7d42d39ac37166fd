"""Profiles an ONNX file: its operators in ONNX Runtime and their times."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime as ort

from compress.measure.engines import as_model, session_options
from compress.measure.latency import input_shapes
from compress.measure.results import OperatorSummary
from compress.measure.worker import random_feed

RUNS = 15
HALF_TICK = 0.5
"""Mean rounding error in microseconds: the profiler truncates to whole ones."""
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear"}
BYTES = {"uint8", "int8"}
GATES = {
    *("QLinearSigmoid", "QLinearMul", "Sigmoid", "Mul", "HardSigmoid", "HardSwish"),
    *("QuickGelu", "Gelu", "Erf", "Tanh"),
}
"""Operators of activations other than clipping, and of squeeze-and-excitation."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A node of the optimized graph."""

    name: str
    kind: str
    ms: float
    """Milliseconds per run, interquartile mean."""
    gives_bytes: bool


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """All nodes of one kind."""

    kind: str
    count: int
    ms: float
    """Milliseconds per run, the sum over the nodes."""
    percent: float
    """Of the sum over all nodes."""


def profile(path: Path, *, threads: int, batch: int = 1, size: int | None = None) -> list[Operator]:
    """Runs an ONNX file in ONNX Runtime's profiler; for `size` see `onnx_model`."""
    with TemporaryDirectory() as folder:
        options = session_options(threads=threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(as_model(path), options, providers=["CPUExecutionProvider"])
        feed = random_feed(input_shapes(session, batch, path, size=size))
        for _ in range(RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    suffix = "_kernel_time"
    runs: dict[str, list[dict[str, object]]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(suffix):
            runs[event["name"].removesuffix(suffix)].append(event)
    return [_operator(name, events) for name, events in runs.items()]


def summarize(operators: Iterable[Operator]) -> OperatorSummary:
    """Summarizes operators by precision."""
    operators = list(operators)
    conversions = sum(operator.kind in CONVERSIONS for operator in operators)
    integer = sum(_is_integer(operator) for operator in operators)
    gates = sum(operator.ms for operator in operators if operator.kind in GATES)
    return OperatorSummary(
        n_int8=integer,
        n_float=len(operators) - integer - conversions,
        n_conversions=conversions,
        gates_share=100 * gates / sum(operator.ms for operator in operators),
    )


def times_by_kind(operators: Iterable[Operator]) -> tuple[OperatorTime, ...]:
    """Sums times by the kind of operator, the longest first."""
    nodes: dict[str, list[float]] = defaultdict(list)
    for operator in operators:
        nodes[operator.kind].append(operator.ms)
    total = sum(map(sum, nodes.values()))
    kinds = [
        OperatorTime(kind=kind, count=len(ms), ms=sum(ms), percent=100 * sum(ms) / total)
        for kind, ms in nodes.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.ms))


def _operator(name: str, runs: list[dict[str, object]]) -> Operator:
    arguments = runs[0]["args"]
    assert isinstance(arguments, dict)
    outputs = arguments.get("output_type_shape", [])
    return Operator(
        name=name,
        kind=arguments["op_name"],
        ms=_middle_mean([float(str(run["dur"])) + HALF_TICK for run in runs]) / 1000,
        gives_bytes=any(set(output) & BYTES for output in outputs),
    )


def _middle_mean(values: list[float]) -> float:
    quarter = len(values) // 4
    return statistics.fmean(sorted(values)[quarter : len(values) - quarter])


def _is_integer(operator: Operator) -> bool:
    if operator.kind in CONVERSIONS:
        return False
    return operator.gives_bytes or operator.kind.startswith(("QLinear", "QGemm"))
