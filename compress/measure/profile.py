"""Profiles an ONNX file: its operators in ONNX Runtime and their times."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime as ort

from compress.measure.latency import random_feed
from compress.measure.results import OperatorSummary
from compress.measure.worker import as_model, session_options

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


def profile(path: Path, *, threads: int) -> list[Operator]:
    """Runs an ONNX file with one input in ONNX Runtime's profiler, at batch size 1."""
    with TemporaryDirectory() as folder:
        options = session_options(threads=threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(as_model(path), options, providers=["CPUExecutionProvider"])
        feed = random_feed(session, 1, path)
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
