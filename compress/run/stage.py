"""Runs one stage: skips it if finished, resumes it if interrupted, measures its result."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compress.cache import measuring_for
from compress.checkpoint import (
    MODEL_FILE,
    REPORT_HTML,
    REPORT_JSON,
    REPORT_MD,
    Checkpoint,
    NewNetwork,
    Start,
    load_checkpoint,
    write_checkpoint,
)
from compress.errors import CompressError
from compress.files import write_json, write_text
from compress.kd.context import Context
from compress.log import say, warn
from compress.measure.config import MeasureConfig
from compress.measure.results import StageReport
from compress.onnx_file import export_onnx
from compress.report.pruning import pruning_page
from compress.report.render import ablation_text, speedup_text, stage_markdown
from compress.run.folder import (
    STORE,
    begin,
    check_target,
    partial_folder,
    put_in_place,
)
from compress.run.key import (
    Request,
    changed_settings,
    difference,
    lineage_of,
    new_step,
    split_warnings,
    stage_key,
)
from compress.run.lookup import read_stage_report
from compress.run.measuring import count, measure_stage
from compress.run.networks import model_spec
from compress.run.recipe import Network
from compress.run.stages import STAGES, require_stage


def run_stage(request: Request) -> Checkpoint:
    """Runs one stage, measures its result, and puts its checkpoint in place.

    Everything is written into `<folder>.partial` and moved when complete: a checkpoint folder
    that exists is finished, and an interrupted stage is resumed if its key is the same.
    """
    folder, key = request.folder, stage_key(request)
    check_target(folder)
    if (done := _done_before(request, key)) is not None:
        return done
    start = _start_of(request)
    _announce(request)
    warnings = split_warnings(request)
    for warning in warnings:
        warn(f"  warning: {warning}")
    earlier = begin(folder, key)
    started = time.perf_counter()
    partial = partial_folder(folder)
    with measuring_for(partial, since=request.measured_since) as measurements:
        product = STAGES[request.stage].run(start, request.config, _context(request, partial))
    seconds = earlier + time.perf_counter() - started
    checkpoint = write_checkpoint(
        partial,
        product,
        stage=request.stage,
        lineage=(*lineage_of(request), new_step(request, key)),
    )
    if product.onnx_file is None:
        export_onnx(
            product.model,
            product.spec,
            partial / MODEL_FILE,
            digest=checkpoint.digest,
            stage=request.stage,
            metadata=product.metadata,
        )
    facts = {
        **count(product, start),
        "seconds": seconds,
        "findings": (*warnings, *product.findings),
        "measurements": tuple(measurements()),
        "result": product.result,
    }
    _measure(checkpoint, request, partial / (product.onnx_file or MODEL_FILE), facts)
    put_in_place(folder)
    return load_checkpoint(folder)


def _start_of(request: Request) -> Start:
    """Returns what a stage starts from.

    Raises:
        CheckpointError: its checkpoint is from a stage that it cannot follow.
    """
    stage, card, parent = STAGES[request.stage], request.card, request.parent
    if parent is not None:
        require_stage(parent.stage, stage, parent.folder)
    if stage.makes == "teacher" and request.teachers:
        given = request.teachers[0].checkpoint
        assert given is not None, "read_teachers refuses an ONNX file in the first place"
        return given
    if stage.makes is None:
        assert parent is not None
        return parent
    assert card is not None
    network: Network = getattr(card, stage.makes)
    return NewNetwork(spec=model_spec(network, request.data), weights=network.weights)


def _context(request: Request, folder: Path) -> Context:
    return Context(
        data=request.data,
        measure=request.measure,
        seed=request.seed,
        folder=folder,
        store=(request.run or folder) / STORE,
        teachers=request.teachers,
    )


def _done_before(request: Request, key: str) -> Checkpoint | None:
    """Returns the stage's checkpoint, measured as requested, if it was made for the same key."""
    folder = request.folder
    if request.again:
        return None
    done = _finished(folder, key)
    if done is None and _finished(partial_folder(folder), key):
        put_in_place(folder)  # killed at the last moment
        done = load_checkpoint(folder)
    if done is None:
        return None
    report = read_stage_report(folder)
    say(f"{request.stage}: already done, top-1 {report.top1:.2f} %", style="bold")
    if _measured_otherwise(report, request.measure):
        how = asdict(request.measure)
        say(f"  measuring again: {', '.join(f'{name} {value}' for name, value in how.items())}")
        kept = ("parameters", "macs", "seconds", "findings", "measurements", "result")
        facts = {name: getattr(report, name) for name in kept}
        _measure(done, request, folder / report.file, facts)
    return done


def _announce(request: Request) -> None:
    settings = ", ".join(changed_settings(request.config)) or "default settings"
    if request.stage == "teacher" and request.teachers:
        settings = f"using {request.teachers[0].path} as is"
    say(f"{request.stage}: {settings}", style="bold")
    if request.folder.exists() and any(request.folder.iterdir()):
        say(f"  will replace {request.folder}, made {difference(request.folder, request)}")


def _finished(folder: Path, key: str) -> Checkpoint | None:
    """Returns the checkpoint in a folder if it is complete and was made for a key."""
    if not (folder / REPORT_MD).is_file():  # written last
        return None
    try:
        checkpoint = load_checkpoint(folder)
        read_stage_report(folder)
    except CompressError as error:
        warn(f"  {error}")
        return None
    return checkpoint if checkpoint.key == key else None


def _measure(
    checkpoint: Checkpoint, request: Request, path: Path, facts: Mapping[str, Any]
) -> None:
    """Measures a stage's ONNX file and writes the stage's report."""
    folder = checkpoint.folder
    report = measure_stage(checkpoint, request, path, facts)
    write_json(folder / REPORT_JSON, report)
    if page := pruning_page(report):
        write_text(folder / REPORT_HTML, page)
    write_text(folder / REPORT_MD, stage_markdown(report))
    speed = f", {speedup_text(report.speedup)} the teacher" if request.stage != "teacher" else ""
    say(f"  top-1 {report.top1:.2f} %, {report.latency_ms_p50:.3f} ms{speed}")
    if ablation := ablation_text(report):
        say(f"  {ablation}")


def _measured_otherwise(report: StageReport, config: MeasureConfig) -> bool:
    return any(getattr(report, name) != how for name, how in asdict(config).items())
