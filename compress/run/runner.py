"""Runs stages in order: skips what is done, resumes what was cut off, measures what came out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from compress.architectures.build import SMALL_IMAGE, build
from compress.architectures.sources import user_code
from compress.architectures.spec import ModelSpec
from compress.cache import measuring_for, now
from compress.checkpoint import (
    MODEL_FILE,
    REPORT_HTML,
    REPORT_JSON,
    REPORT_MD,
    STAGES,
    Checkpoint,
    load_checkpoint,
    require_stage,
    write_checkpoint,
)
from compress.data.load import Data, load_data
from compress.distill import stage as distill_stage
from compress.errors import CheckpointError, CompressError
from compress.export import stage as export_stage
from compress.files import write_json, write_text
from compress.kd.context import Context, Product
from compress.kd.teachers import Teacher, check_teacher, checkpoint_teacher
from compress.log import say, warn
from compress.measure.config import MeasureConfig
from compress.measure.results import RunReport, StageReport, read_stage_report
from compress.onnx_file import export_onnx
from compress.prune import stage as prune_stage
from compress.quantize import stage as quantize_stage
from compress.report.html import figures_html
from compress.report.render import ablation_text, stage_markdown
from compress.run.folder import (
    STORE,
    begin,
    check_target,
    partial_folder,
    put_in_place,
    stage_folder,
)
from compress.run.key import (
    TIMED,
    Request,
    changed_settings,
    difference,
    lineage_of,
    new_step,
    split_warnings,
    stage_key,
)
from compress.run.measuring import measure_stage
from compress.run.recipe import ModelCard, Network, Recipe
from compress.run.report import write_run_report
from compress.teacher import stage as teacher_stage


def run_recipe(
    card: ModelCard,
    recipe: Recipe,
    data: Data,
    folder: Path,
    *,
    teachers: tuple[Teacher, ...] = (),
    first: str | None = None,
    last: str | None = None,
    remeasure: bool = False,
) -> RunReport:
    """Runs a recipe's stages into a run folder and writes the run's report.

    Args:
        card: teacher and student.
        recipe: stages and settings.
        data: the loaded data set.
        folder: the run's; finished stages in it are taken over if nothing they depend on changed.
        teachers: trained ones, instead of the card's; the first becomes the run's teacher.
        first: run this stage and those after it even if they are done.
        last: stop after this stage.
        remeasure: remember nothing that was measured before, and run stages anew that latency
            decides.

    Raises:
        CompressError: a teacher does not fit the data, the card's student cannot be built, or a
            stage's folder holds what is not ours.
    """
    for stage in recipe.stages:
        check_target(stage_folder(folder, stage))
    for teacher in teachers:
        check_teacher(teacher, data)
    if "distill" in recipe.stages:
        build(model_spec(card.student, data))  # what is wrong is told now, not after the teacher
    parent = None
    again = False
    since = now() if remeasure else ""
    for stage in recipe.stages:
        again = again or stage == first or (remeasure and stage in TIMED)
        given = stage == "teacher" and bool(teachers)
        parent = run_stage(
            Request(
                stage=stage,
                config=getattr(recipe, stage),
                folder=stage_folder(folder, stage),
                run=folder,
                card=card,
                parent=parent,
                teachers=teachers,
                data=_as_seen_by(teachers[0], data, recipe.seed) if given else data,
                measure=recipe.measure,
                seed=recipe.seed,
                again=again,
                measured_since=since,
            )
        )
        if stage == "teacher":
            weight = teachers[0].weight if teachers else 1.0
            teachers = (checkpoint_teacher(parent, weight=weight), *teachers[1:])
        if stage == last:
            break
    return write_run_report(folder)


def run_stage(request: Request) -> Checkpoint:
    """Runs one stage, measures its result and puts its checkpoint in place.

    Everything is written into `<folder>.partial` and moved when complete: a checkpoint folder
    that exists is finished, and a cut-off one is continued if it was made for the same key.
    """
    folder, key = request.folder, stage_key(request)
    check_target(folder)
    done = _done_before(request, key)
    if done is not None:
        return done
    _announce(request)
    warnings = split_warnings(request)
    for warning in warnings:
        warn(f"  warning: {warning}")
    earlier = begin(folder, key)
    partial = partial_folder(folder)
    context = Context(
        data=request.data,
        measure=request.measure,
        seed=request.seed,
        folder=partial,
        store=(request.run or partial) / STORE,
        teachers=request.teachers,
    )
    started = time.perf_counter()
    with measuring_for(partial, since=request.measured_since) as measurements:
        product = _run(request, context)
    seconds = earlier + time.perf_counter() - started
    checkpoint = write_checkpoint(
        partial,
        product.model.state_dict(),
        stage=request.stage,
        spec=product.spec,
        shapes=dict(product.shapes),
        removed=product.removed,
        quantized=product.quantized,
        lineage=(*lineage_of(request), new_step(request, key)),
    )
    if "ship" not in product.details:  # the export stage has written its own files
        export_onnx(
            product.model,
            product.spec,
            partial / MODEL_FILE,
            digest=checkpoint.digest,
            stage=request.stage,
        )
    details = dict(product.details)
    if findings := [*warnings, *details.get("findings", ())]:
        details["findings"] = findings
    if rows := measurements():
        details["measurements"] = [dataclasses.asdict(row) for row in rows]
    _measure(checkpoint, request, seconds, details)
    put_in_place(folder)
    return load_checkpoint(folder)


def _done_before(request: Request, key: str) -> Checkpoint | None:
    """Returns the stage's checkpoint if it was made for the same key, measured as asked."""
    folder = request.folder
    done = None if request.again else _finished(folder, key)
    if done is None and not request.again and _finished(partial_folder(folder), key):
        put_in_place(folder)  # killed in the last moment
        done = load_checkpoint(folder)
    if done is None:
        return None
    report = read_stage_report(folder)
    say(f"{request.stage}: done before, top-1 {report.top1:.2f} %", style="bold")
    if _measured_otherwise(report, request.measure):
        wanted = request.measure
        say(f"  measuring again: threads {wanted.threads}, batch {wanted.batch}")
        _measure(done, request, report.seconds, report.details)
    return done


def _announce(request: Request) -> None:
    settings = ", ".join(changed_settings(request.config)) or "default settings"
    if request.stage == "teacher" and request.teachers:
        settings = f"{request.teachers[0].path}, as it is"
    say(f"{request.stage}: {settings}", style="bold")
    if request.folder.exists() and any(request.folder.iterdir()):
        say(f"  will replace {request.folder}, made {difference(request.folder, request)}")


def model_spec(network: Network, data: Data) -> ModelSpec:
    """Returns the spec of a card's network for a data set."""
    stem = network.stem
    if stem == "auto":
        stem = "small" if data.preprocess.size < SMALL_IMAGE else "large"
    return ModelSpec(
        architecture=network.architecture,
        arguments=network.arguments,
        stem=stem,
        activation=network.activation,
        code=user_code(network.architecture),
        class_names=data.class_names,
        preprocess=data.preprocess,
    )


def _as_seen_by(teacher: Teacher, data: Data, seed: int) -> Data:
    """Returns the data set in the teacher's image size."""
    size = teacher.preprocess.size
    if size == data.preprocess.size:
        return data
    return load_data(data.name, dataclasses.replace(data.config, size=size), seed=seed)


def find_origin(checkpoint: Checkpoint) -> Checkpoint | None:
    """Returns the checkpoint that one was made from, if it still lies in the same run."""
    wanted = checkpoint.description.step.parent
    for stage in STAGES:
        folder = stage_folder(checkpoint.folder.parent, stage)
        if folder.is_dir() and folder != checkpoint.folder:
            try:
                other = load_checkpoint(folder)
            except CheckpointError:
                continue  # a damaged neighbor is not the one looked for
            if other.digest == wanted:
                return other
    return None


def _run(request: Request, context: Context) -> Product:
    """Hands the request to its stage."""
    stage, card, parent, config = request.stage, request.card, request.parent, request.config
    if stage == "teacher":
        if request.teachers:
            return teacher_stage.take(request.teachers[0])
        assert card is not None
        spec = model_spec(card.teacher, request.data)
        return teacher_stage.run(spec, card.teacher.weights, config, context)
    assert parent is not None
    if stage == "distill":
        assert card is not None
        require_stage(parent, ("teacher",), wanted_by=stage)
        return distill_stage.run(model_spec(card.student, request.data), config, context)
    if stage == "prune":
        require_stage(parent, ("teacher", "distill", "prune"), wanted_by=stage)
        return prune_stage.run(parent, config, context)
    if stage == "quantize":
        require_stage(parent, ("teacher", "distill", "prune"), wanted_by=stage)
        return quantize_stage.run(parent, config, context)
    assert stage == "export", stage
    require_stage(parent, ("teacher", "distill", "prune", "quantize"), wanted_by=stage)
    origin = find_origin(parent) if parent.description.quantized else None
    return export_stage.run(parent, origin, config, context)


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


def _measure(checkpoint: Checkpoint, request: Request, seconds: float, details: Any) -> None:
    """Measures a stage's ONNX file and writes the stage's report."""
    folder, parent = checkpoint.folder, request.parent
    reference = before = None
    if request.stage != "teacher":
        reference = request.teachers[0].path / MODEL_FILE
    if parent and parent.digest not in (checkpoint.digest, request.teachers[0].digest):
        before = parent.folder / MODEL_FILE
    report = measure_stage(
        checkpoint,
        folder / details.get("ship", MODEL_FILE),
        request.data,
        reference=reference,
        before=before,
        config=request.measure,
        seconds=seconds,
        details=details,
    )
    write_json(folder / REPORT_JSON, report)
    if figures := figures_html(report):
        write_text(folder / REPORT_HTML, figures)
    write_text(folder / REPORT_MD, stage_markdown(report))
    faster = f", {report.speedup:.1f}x faster than the teacher" if reference else ""
    say(f"  top-1 {report.top1:.2f} %, {report.latency_ms_p50:.3f} ms{faster}")
    if "alone" in details:
        say(f"  {ablation_text(report)}")


def _measured_otherwise(report: StageReport, config: MeasureConfig) -> bool:
    return (report.threads, report.batch) != (config.threads, config.batch)
