"""A stage's report: its ONNX file scored and timed, beside the teacher's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress.checkpoint import Checkpoint
from compress.data.load import Data
from compress.host import describe_host
from compress.int8.restore import build_pruned
from compress.measure.accuracy import accuracy, predict_split
from compress.measure.config import MeasureConfig
from compress.measure.cost import count_macs, count_parameters
from compress.measure.latency import measure_latency
from compress.measure.profile import profile, summarize
from compress.measure.results import StageReport


def measure_stage(
    checkpoint: Checkpoint,
    path: Path,
    data: Data,
    *,
    reference: Path | None,
    before: Path | None,
    config: MeasureConfig,
    seconds: float,
    details: Mapping[str, Any],
) -> StageReport:
    """Measures a stage's file and returns the stage's report.

    Args:
        checkpoint: the stage's; its network is counted.
        path: the stage's ONNX file.
        data: its test split is scored.
        reference: the teacher's ONNX file, run in turns with this one; None for the teacher.
        before: the ONNX file of the stage that this one started from, if it is another one yet.
        config: threads and batch of the latency.
        seconds: the stage took.
        details: the stage's own facts.
    """
    predicted = predict_split(path, data.test, title="scoring on the test split")
    files = [path] if reference is None else [reference, path]
    latency = measure_latency(files, threads=config.threads, batch=config.batch)[-1]
    step = None
    if before is not None:  # the teacher's ratios are minutes apart, and machines wander
        step = measure_latency([before, path], threads=config.threads, batch=config.batch)[-1]
    description = checkpoint.description
    network = build_pruned(description)
    return StageReport(
        stage=checkpoint.stage,
        file=path.name,
        parameters=count_parameters(network),
        macs=count_macs(network, description.spec),
        size_bytes=path.stat().st_size,
        **dataclasses.asdict(accuracy(predicted, data.test.labels.numpy())),
        **dataclasses.asdict(latency),
        step_speedup_ci95=step.speedup_ci95 if step else None,
        operators=summarize(profile(path, threads=config.threads)),
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        digest=checkpoint.digest,
        parent=description.step.parent,
        details=dict(details),
        host=describe_host(),
    )
