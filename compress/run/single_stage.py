"""Runs a single stage on a checkpoint."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compress.cache import now
from compress.checkpoint import (
    REPORT_JSON,
    Checkpoint,
    find_origin,
    is_checkpoint,
    load_checkpoint,
)
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.data.preprocess import inputs_of
from compress.errors import CompressError
from compress.kd.teachers import read_teachers
from compress.log import say, warn
from compress.measure.config import MeasureConfig
from compress.run.folder import check_target, owned_folder, owned_run
from compress.run.key import Request
from compress.run.lookup import is_run, newest_stage_before, read_stage_report
from compress.run.recipe import ModelCard, parse_card
from compress.run.report import write_run_report
from compress.run.stage import run_stage
from compress.run.stages import RUNS, STAGES, require_stage, stage_folder
from compress.run.tracking import tracking
from compress.settings import parse, settings_of


def run_single_stage(
    stage: str,
    config: Any,
    *,
    source: Path | None,
    out: Path | None,
    teachers: Sequence[str],
    remeasure: bool = False,
    log: Sequence[str] = (),
) -> Checkpoint:
    """Runs one stage on a checkpoint.

    Args:
        stage: name of the stage.
        config: settings of the stage.
        source: checkpoint to start from; None: the previous stage of the newest run.
        out: folder of the result; None: next to the source.
        teachers: see `read_teachers`; empty: the teacher of the source's run.
        remeasure: run even if finished, and ignore cached measurements.
        log: see `tracking`.

    Raises:
        CompressError: the source or the teacher is missing or of the wrong stage, or the result's
            folder contains foreign files.
    """
    if source is None:
        source = newest_stage_before(stage, RUNS)
        say(f"starting from {source}")
    parent = load_checkpoint(source)
    require_stage(parent.stage, STAGES[stage], source)
    _warn_if_outdated(parent)
    folder = out or stage_folder(source.parent, stage)
    in_run = is_run(folder.parent) and folder == stage_folder(folder.parent, stage)
    run = folder.parent if in_run else None
    names = teachers or [_teacher_beside(source)]
    with owned_folder(folder) if run is None else owned_run(run):
        check_target(folder)
        given = read_teachers(names)
        _check_inputs(folder, (source, *(teacher.path for teacher in given)))
        request = Request(
            stage=stage,
            config=config,
            folder=folder,
            run=run,
            card=_card_of(parent),
            parent=parent,
            teachers=given,
            data=data_of(parent),
            measure=measure_of(source),
            seed=parent.description.step.seed,
            again=remeasure,
            measured_since=now() if remeasure else "",
        )
        facts = {
            **{"data": request.data.name, "seed": request.seed},
            **{f"{stage}.{setting.name}": setting.default for setting in settings_of(config)},
        }
        with tracking(log, facts, run=folder.parent, report=folder / REPORT_JSON):
            result = run_stage(request)
        if run is not None:
            write_run_report(run)
    return result


def _warn_if_outdated(parent: Checkpoint) -> None:
    folder = parent.folder
    in_run = folder == stage_folder(folder.parent, parent.stage)
    if in_run and parent.description.step.parent is not None and find_origin(parent) is None:
        warn(
            f"warning: {folder} was made from an earlier version of the previous stage; rerun "
            "it first"
        )


def _teacher_beside(source: Path) -> str:
    """Returns the teacher of a checkpoint's run.

    Raises:
        CompressError: there is none.
    """
    teacher = stage_folder(source.parent, "teacher")
    if not is_checkpoint(teacher):
        raise CompressError(f"no teacher in {teacher}; specify one with --teacher")
    return str(teacher)


def _check_inputs(folder: Path, inputs: Iterable[Path]) -> None:
    """Raises CompressError if the result would replace an input."""
    if any(path.resolve() == folder.resolve() for path in inputs):
        raise CompressError(
            f"{folder} is an input of this stage and would be replaced; choose another "
            "folder with --out"
        )


def _card_of(checkpoint: Checkpoint) -> ModelCard | None:
    """Returns the last card in a checkpoint's lineage."""
    cards = [step.card for step in checkpoint.description.lineage if step.card is not None]
    return parse_card(cards[-1], f"in {checkpoint.folder}") if cards else None


def measure_of(folder: Path) -> MeasureConfig:
    """Returns the settings that a stage was measured with."""
    report = read_stage_report(folder)
    return MeasureConfig(threads=report.threads, batch=report.batch, rounds=report.rounds)


def data_of(checkpoint: Checkpoint) -> Data:
    """Loads a checkpoint's dataset."""
    step = checkpoint.description.step
    config = parse(DataConfig(), step.data_config, section="data")
    inputs = inputs_of(checkpoint.description.spec.preprocess)
    return load_data(step.data, config, seed=step.seed, inputs=inputs)
