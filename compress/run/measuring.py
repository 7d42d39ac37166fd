"""A stage's report: its ONNX file is scored, and timed alternately with the teacher's."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress.checkpoint import Checkpoint, Product, Start
from compress.data.load import Data
from compress.host import describe_host
from compress.measure.accuracy import accuracy, predict_split
from compress.measure.config import MeasureConfig
from compress.measure.cost import count_macs, count_parameters
from compress.measure.latency import measure_latency
from compress.measure.profile import profile, summarize
from compress.measure.results import StageReport
from compress.run.lookup import read_stage_report


def count(product: Product, start: Start) -> dict[str, int]:
    """Returns the parameters and MACs of a product, as fields of its report.

    An int8 network has those of its float network, found in the report of its start.
    """
    if product.quantized is not None:
        assert isinstance(start, Checkpoint)
        report = read_stage_report(start.folder)
        return {"parameters": report.parameters, "macs": report.macs}
    return {
        "parameters": count_parameters(product.model),
        "macs": count_macs(product.model, product.spec),
    }


def measure_stage(
    checkpoint: Checkpoint,
    path: Path,
    data: Data,
    *,
    reference: Path | None,
    before: Path | None,
    config: MeasureConfig,
    facts: Mapping[str, Any],
) -> StageReport:
    """Measures a stage's file and returns the stage's report.

    Args:
        checkpoint: the stage's checkpoint.
        path: the stage's ONNX file.
        data: dataset whose test split is scored.
        reference: the teacher's ONNX file, timed alternately; None for the teacher.
        before: ONNX file of the stage that this one started from, unless it is one of the others.
        config: threads, batch size and rounds.
        facts: fields of the report that are not measured here.
    """
    predicted = predict_split(path, data.test, title="scoring the test split")
    files = [path] if reference is None else [reference, path]
    how = dataclasses.asdict(config)
    latency = measure_latency(files, **how)[-1]
    step = None
    if before is not None:  # ratios to the teacher are minutes apart, and machines drift
        step = measure_latency([before, path], **how)[-1]
    return StageReport(
        stage=checkpoint.stage,
        file=path.name,
        size_bytes=path.stat().st_size,
        **dataclasses.asdict(accuracy(predicted, data.test.labels.numpy())),
        **dataclasses.asdict(latency),
        step_speedup_ci95=step.speedup_ci95 if step else None,
        operators=summarize(profile(path, threads=config.threads)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        digest=checkpoint.digest,
        parent=checkpoint.description.step.parent,
        host=describe_host(),
        **facts,
    )
