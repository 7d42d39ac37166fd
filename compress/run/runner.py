"""Runs stages in order: skips finished ones, resumes interrupted ones, measures the results."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compress.architectures.build import SMALL_IMAGE, build
from compress.architectures.sources import user_code
from compress.architectures.spec import ModelSpec
from compress.architectures.weights import weights_inputs
from compress.cache import measuring_for, now
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
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.data.preprocess import Inputs, inputs_of
from compress.errors import CompressError
from compress.files import write_json, write_text
from compress.kd.context import Context
from compress.kd.teachers import Teacher, check_teacher, checkpoint_teacher, read_teachers
from compress.log import say, warn
from compress.measure.config import MeasureConfig
from compress.measure.results import RunReport, StageReport
from compress.onnx_file import export_onnx
from compress.report.html import figures_html
from compress.report.render import ablation_text, speedup_text, stage_markdown
from compress.run.folder import (
    STORE,
    begin,
    check_target,
    claim_run,
    owned_run,
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
from compress.run.recipe import ModelCard, Network, Recipe
from compress.run.report import write_run_report
from compress.run.stages import STAGES, require_stage, stage_folder


def run_card(
    card: ModelCard,
    recipe: Recipe,
    data: str | Data,
    folder: Path,
    *,
    names: tuple[str, str],
    teachers: Sequence[str] = (),
    first: str | None = None,
    last: str | None = None,
    remeasure: bool = False,
) -> RunReport:
    """Runs a recipe into a run's folder, which is locked and claimed; see `run_recipe`.

    Args:
        card: teacher and student.
        recipe: stages and settings.
        data: a dataset, or its name as `--data` takes it.
        folder: the run's folder.
        names: card and recipe, as the user named them.
        teachers: trained teachers as `--teacher` takes them.
        first: see `run_recipe`, as for the others.
        last: last stage.
        remeasure: whether to ignore cached measurements.

    Raises:
        CompressError: see `owned_run`, `read_teachers`, `load_data`, `claim_run`, and `run_recipe`.
    """
    with owned_run(folder):
        given = read_teachers(teachers)
        if isinstance(data, str):
            data = load_data(data, recipe.data, seed=recipe.seed, inputs=card_inputs(card))
        claim_run(folder, model=names[0], pipeline=names[1], data=data)
        return run_recipe(
            card,
            recipe,
            data,
            folder,
            teachers=given,
            first=first,
            last=last,
            remeasure=remeasure,
        )


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
        data: the loaded dataset.
        folder: the run's folder; finished stages in it are reused if nothing they depend on
            changed.
        teachers: trained teachers instead of the card's; the first becomes the run's teacher.
        first: run this stage and those after it even if they are finished.
        last: stop after this stage.
        remeasure: ignore cached measurements and rerun the stages that depend on latency.

    Raises:
        CompressError: a teacher does not fit the data, the card's student cannot be built, or a
            stage's folder contains foreign files.
    """
    for stage in recipe.stages:
        check_target(stage_folder(folder, stage))
    for teacher in teachers:
        check_teacher(teacher, data)
    if any(STAGES[stage].makes == "student" for stage in recipe.stages):
        build(model_spec(card.student, data))  # fail now, not after training the teacher
    parent = None
    again = False
    since = now() if remeasure else ""
    for stage in recipe.stages:
        again = again or stage == first or (remeasure and STAGES[stage].timed)
        given = stage == "teacher" and bool(teachers)
        parent = run_stage(
            Request(
                stage=stage,
                config=recipe.settings[stage],
                folder=stage_folder(folder, stage),
                run=folder,
                card=card,
                parent=parent,
                teachers=teachers,
                data=_resized_for(teachers[0], data, recipe.seed) if given else data,
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


def card_inputs(card: ModelCard) -> Inputs:
    """Returns how the card's teacher wants its images: as its weights, unless the card overrides.

    Raises:
        CompressError: the weights are unknown, or an override is wrong.
    """
    described = weights_inputs(card.teacher.architecture, card.teacher.weights)
    try:
        return TypeAdapter(Inputs).validate_python(asdict(described) | card.teacher.inputs)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, ("teacher", "inputs", *problem["loc"])))
        raise CompressError(f"{name}: {problem['msg']}") from None


def model_spec(network: Network, data: Data) -> ModelSpec:
    """Returns the spec of a card's network for a dataset."""
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


def _resized_for(teacher: Teacher, data: Data, seed: int) -> Data:
    """Returns the dataset with the teacher's preprocessing."""
    if teacher.preprocess == data.preprocess:
        return data
    sized = dataclasses.replace(data.config, size=teacher.preprocess.size)
    return load_data(data.name, sized, seed=seed, inputs=inputs_of(teacher.preprocess))


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
    if figures := figures_html(report):
        write_text(folder / REPORT_HTML, figures)
    write_text(folder / REPORT_MD, stage_markdown(report))
    speed = f", {speedup_text(report.speedup)} the teacher" if request.stage != "teacher" else ""
    say(f"  top-1 {report.top1:.2f} %, {report.latency_ms_p50:.3f} ms{speed}")
    if ablation := ablation_text(report):
        say(f"  {ablation}")


def _measured_otherwise(report: StageReport, config: MeasureConfig) -> bool:
    return any(getattr(report, name) != how for name, how in asdict(config).items())
