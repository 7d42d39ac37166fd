"""A stage's report: its ONNX file is scored, and timed alternately with the teacher's."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from compress.cache import cached, key_on_host
from compress.checkpoint import MODEL_FILE, Checkpoint, Product, Start, find_origin
from compress.data.dataset import Data
from compress.files import file_digest
from compress.host import describe_host
from compress.measure import latency
from compress.measure.accuracy import accuracy, images_digest, predict_split
from compress.measure.cost import count_macs, count_parameters
from compress.measure.latency import (
    Latency,
    Throughput,
    measure_latency,
    measure_throughput,
)
from compress.measure.profile import profile, summarize
from compress.measure.results import StageReport
from compress.measure.statistics import compare_paired, pack_bools
from compress.run.key import Request
from compress.run.lookup import read_stage_report

T = TypeVar("T", Latency, Throughput)


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
    checkpoint: Checkpoint, request: Request, path: Path, facts: Mapping[str, Any]
) -> StageReport:
    """Measures a stage's ONNX file and returns the stage's report.

    It takes turns with the teacher's file, and with that of the stage that it started from. Facts
    are the fields of the report that are not measured here.
    """
    data, parent = request.data, request.parent
    labels = data.test.labels.numpy()
    predicted = predict_test(path, data)
    baseline = [] if request.stage == "teacher" else [request.teachers[0].path / MODEL_FILE]
    how = dataclasses.asdict(request.measure)
    earlier = _report_before(path, request)
    right = predicted == labels
    change = step = step_change = None
    if earlier:
        timed, throughput = _part(Latency, earlier), _part(Throughput, earlier)
    else:
        timed = measure_latency([*baseline, path], **how, cold_runs=latency.COLD_RUNS)[-1]
        throughput = measure_throughput(path, threads=how["threads"], batch=how["batch"])
    if baseline and request.teachers[0].preprocess == data.preprocess:
        change = compare_paired(right, predict_test(baseline[0], data) == labels)
    if parent and parent.digest not in (checkpoint.digest, request.teachers[0].digest):
        # Ratios to the teacher are minutes apart, and machines drift.
        before = parent.folder / MODEL_FILE
        step = measure_latency([before, path], **how)[-1]
        step_change = compare_paired(right, predict_test(before, data) == labels)
    return StageReport(
        stage=checkpoint.stage,
        file=path.name,
        size_bytes=path.stat().st_size,
        **dataclasses.asdict(accuracy(predicted, labels)),
        test_images=cached(str, "test images", data.fingerprint, lambda: images_digest(data.test)),
        correct=pack_bools(right),
        change=change,
        step_change=step_change,
        **dataclasses.asdict(timed),
        **dataclasses.asdict(throughput),
        step_speedup_ci95=step.speedup_ci95 if step else None,
        operators=summarize(profile(path, threads=request.measure.threads)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        digest=checkpoint.digest,
        parent=checkpoint.description.step.parent,
        host=describe_host(),
        **facts,
    )


def _report_before(path: Path, request: Request) -> StageReport | None:
    """Returns the report of the stage that made a file.

    A file is timed once, so that its rows agree; None if it is new, or was timed otherwise.
    """
    made = [] if request.parent is None else [request.parent, find_origin(request.parent)]
    for checkpoint in made:
        file = checkpoint.folder / MODEL_FILE if checkpoint else None
        if file is None or not file.is_file() or file_digest(file) != file_digest(path):
            continue
        report = read_stage_report(file.parent)
        how = dataclasses.asdict(request.measure)
        if report.host == describe_host() and all(getattr(report, key) == how[key] for key in how):
            return report
    return None


def _part(kind: type[T], report: StageReport) -> T:
    """Returns the fields of a report that were copied from another dataclass."""
    names = [field.name for field in dataclasses.fields(cast(Any, kind))]
    return kind(**{name: getattr(report, name) for name in names})


def predict_test(path: Path, data: Data) -> np.ndarray:
    """Returns an ONNX file's class of every test image, int64 `[n_images]`; each file runs once."""
    predicted = cached(
        list[int],
        "predictions",
        key_on_host({"file": file_digest(path), "data": data.fingerprint}),
        lambda: predict_split(path, data.test, title="scoring the test split").tolist(),
    )
    return np.array(predicted)
