"""The export stage: copies the float and int8 files, checks them, and picks one to ship."""

import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint import (
    FLOAT_FILE,
    INT8_FILE,
    MODEL_FILE,
    Checkpoint,
    Product,
    Start,
    find_origin,
)
from compress.errors import CheckpointError
from compress.export.config import ExportConfig
from compress.export.parity import Parity, check_parity
from compress.export.result import ExportResult
from compress.files import atomic_write
from compress.int8.restore import load_model
from compress.kd.context import Context
from compress.log import count_of, say, warn
from compress.measure.accuracy import predict_split
from compress.measure.latency import measure_latency
from compress.measure.statistics import PairedDifference, compare_paired
from compress.onnx_file import read_facts

MIN_AGREEMENT = 99.0
"""Percent of the images; below it, torch and the file are reported to differ."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The file to ship, and why."""

    ship: str
    reason: str


def run(start: Start, config: ExportConfig, context: Context) -> Product:
    """Copies the float and the int8 file into the context's folder and chooses between them.

    Validation images decide; the comparison with torch uses test images.

    Raises:
        CheckpointError: a checkpoint's ONNX file is missing or was changed.
    """
    assert isinstance(start, Checkpoint)
    sources = _sources(start)
    models = {name: load_model(source) for name, source in sources.items()}
    for name, source in sources.items():
        _copy(source, context.folder / name)
    parity = {
        name: check_parity(model, context.folder / name, context.data.test)
        for name, model in models.items()
    }
    findings = list(_disagreements(parity))
    change = None
    verdict = Verdict(ship=next(iter(sources)), reason="the only file")
    if len(sources) > 1:
        change = compare_files(context.folder, context)
        findings += change.doubts(config.max_drop)
        verdict = choose(context.folder, change, config, context)
    for finding in findings:
        warn(f"  {finding}")
    return Product(
        model=models[INT8_FILE if INT8_FILE in models else FLOAT_FILE],
        spec=start.spec,
        shapes=start.description.shapes,
        removed=start.description.removed,
        quantized=start.description.quantized,
        result=ExportResult(
            files=tuple(sorted(sources)),
            parity=parity,
            change=change,
            ship=verdict.ship,
            reason=verdict.reason,
        ),
        findings=tuple(findings),
        onnx_file=verdict.ship,
    )


def _sources(start: Checkpoint) -> dict[str, Checkpoint]:
    """Returns the checkpoint of each file: the int8 one and the float one it was made from."""
    if start.description.quantized is None:
        return {FLOAT_FILE: start}
    origin = find_origin(start)
    if origin is None:
        say("  exporting the int8 file only: its float checkpoint is not in the same run")
        return {INT8_FILE: start}
    return {INT8_FILE: start, FLOAT_FILE: origin}


def _copy(source: Checkpoint, path: Path) -> None:
    """Copies a checkpoint's ONNX file, the one described by its report."""
    original = source.folder / MODEL_FILE
    if not original.is_file() or read_facts(original).digest != source.digest:
        raise CheckpointError(
            f"{original} is missing or not from this checkpoint; run stage {source.stage} again"
        )
    with atomic_write(path) as partial:
        shutil.copyfile(original, partial)


def _disagreements(parity: Mapping[str, Parity]) -> Iterable[str]:
    for name, found in parity.items():
        if found.top1_agreement < MIN_AGREEMENT:
            yield f"{name} and torch agree on only {found.top1_agreement:.2f} % of the test images"


def compare_files(folder: Path, context: Context) -> PairedDifference:
    """Compares int8 with float on the validation images."""
    validation = context.data.validation
    labels = validation.labels.numpy()
    int8, float_ = (
        predict_split(folder / name, validation) == labels for name in (INT8_FILE, FLOAT_FILE)
    )
    return compare_paired(int8, float_)


def choose(
    folder: Path, change: PairedDifference, config: ExportConfig, context: Context
) -> Verdict:
    """Decides between the files by int8's change in top-1 and latency on this machine."""
    float_time, int8_time = measure_latency(
        [folder / FLOAT_FILE, folder / INT8_FILE], **dataclasses.asdict(context.measure)
    )
    evidence = (
        f"int8 takes {int8_time.latency_ms_p50:.3f} ms, float {float_time.latency_ms_p50:.3f} ms "
        f"({int8_time.speedup:.2f}x, 95 % interval {int8_time.speedup_ci95[0]:.2f} to "
        f"{int8_time.speedup_ci95[1]:.2f}); top-1 {change.points:+.2f} points (95 % interval "
        f"{change.points_ci95[0]:.2f} to {change.points_ci95[1]:.2f}) on "
        f"{count_of(change.n_images, 'validation image')}"
    )
    verdict = judge(-change.points, config.max_drop, int8_time.speedup_ci95)
    return dataclasses.replace(verdict, reason=f"{verdict.reason}: {evidence}")


def judge(drop: float, max_drop: float, speedup_ci95: tuple[float, float]) -> Verdict:
    """Decides by int8's drop in validation top-1, in percentage points, and its speedup."""
    if drop > max_drop:
        reason = f"int8 loses {drop:.2f} points, more than max_drop = {max_drop:g}"
        return Verdict(ship=FLOAT_FILE, reason=reason)
    if speedup_ci95[1] < 1:
        return Verdict(ship=FLOAT_FILE, reason="int8 is slower on this machine")
    if speedup_ci95[0] <= 1:
        return Verdict(
            ship=INT8_FILE,
            reason="int8 is smaller, but not significantly faster on this machine",
        )
    return Verdict(ship=INT8_FILE, reason="int8 pays off")
