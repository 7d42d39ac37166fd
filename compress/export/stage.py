"""Stage export: write the files, check them against torch, and name the one to ship."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint import FLOAT_FILE, INT8_FILE, Checkpoint
from compress.export.config import ExportConfig
from compress.export.parity import check_parity
from compress.int8.restore import load_model
from compress.kd.context import Context, Product
from compress.log import say
from compress.measure.accuracy import accuracy, predict_split
from compress.measure.latency import measure_latency
from compress.onnx_file import export_onnx


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which file to ship, and why."""

    ship: str
    reason: str


def run(
    checkpoint: Checkpoint, origin: Checkpoint | None, config: ExportConfig, context: Context
) -> Product:
    """Writes the float and the int8 file into the context's folder.

    Args:
        checkpoint: of any stage.
        origin: the float checkpoint that an int8 one was quantized from, if it is still there.
        config: when int8 is good enough.
        context: validation images for the choice, test images for the comparison with torch.
    """
    sources = {INT8_FILE: checkpoint} if checkpoint.description.quantized else {}
    float_source = origin if sources else checkpoint
    if float_source is None:
        say("  only the int8 file is written: the float checkpoint is not in the same run")
    if float_source is not None:
        sources[FLOAT_FILE] = float_source
    parity, models = {}, {name: load_model(source) for name, source in sources.items()}
    for name, source in sources.items():
        path, model = context.folder / name, models[name]
        export_onnx(model, source.spec, path, digest=source.digest, stage=source.stage)
        parity[name] = dataclasses.asdict(check_parity(model, path, context.data.test))
    verdict = choose(context.folder, sorted(sources), config, context)
    return Product(
        model=models[INT8_FILE if INT8_FILE in models else FLOAT_FILE],
        spec=checkpoint.spec,
        shapes=checkpoint.description.shapes,
        removed=checkpoint.description.removed,
        quantized=checkpoint.description.quantized,
        details={"files": sorted(sources), "parity": parity, **dataclasses.asdict(verdict)},
    )


def choose(folder: Path, names: list[str], config: ExportConfig, context: Context) -> Verdict:
    """Decides between the files, on validation images and on this machine's clock."""
    if len(names) == 1:
        return Verdict(ship=names[0], reason="the only file")
    validation = context.data.validation
    labels = validation.labels.numpy()
    top1 = {
        name: accuracy(predict_split(folder / name, validation), labels).top1
        for name in (FLOAT_FILE, INT8_FILE)
    }
    drop = top1[FLOAT_FILE] - top1[INT8_FILE]
    float_time, int8_time = measure_latency(
        [folder / FLOAT_FILE, folder / INT8_FILE],
        threads=context.measure.threads,
        batch=context.measure.batch,
    )
    evidence = (
        f"int8 takes {int8_time.latency_ms_p50:.3f} ms, float {float_time.latency_ms_p50:.3f} ms "
        f"({int8_time.speedup:.2f}x, 95 % interval {int8_time.speedup_ci95[0]:.2f} to "
        f"{int8_time.speedup_ci95[1]:.2f}); top-1 {top1[INT8_FILE]:.2f} % against "
        f"{top1[FLOAT_FILE]:.2f} % on {len(validation)} validation images"
    )
    verdict = judge(drop, config.max_drop, int8_time.speedup_ci95)
    return dataclasses.replace(verdict, reason=f"{verdict.reason}: {evidence}")


def judge(drop: float, max_drop: float, speedup_ci95: tuple[float, float]) -> Verdict:
    """Decides between the files.

    Args:
        drop: points of validation top-1 that int8 loses.
        max_drop: what it may lose.
        speedup_ci95: how many times faster int8 is than float.
    """
    if drop > max_drop:
        reason = f"int8 loses {drop:.2f} points, more than max_drop = {max_drop:g}"
        return Verdict(ship=FLOAT_FILE, reason=reason)
    if speedup_ci95[1] < 1:
        return Verdict(ship=FLOAT_FILE, reason="int8 is slower on this machine")
    if speedup_ci95[0] <= 1:
        return Verdict(
            ship=INT8_FILE, reason="int8 is smaller, though no faster beyond noise on this machine"
        )
    return Verdict(ship=INT8_FILE, reason="int8 pays")
