"""Runs the stages of a recipe in order."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from compress.architectures.build import build
from compress.cache import now
from compress.checkpoint import REPORT_JSON
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.data.preprocess import inputs_of
from compress.kd.teachers import Teacher, check_teacher, checkpoint_teacher, read_teachers
from compress.measure.results import RunReport
from compress.run.folder import (
    check_target,
    claim_run,
    owned_run,
)
from compress.run.insights import add_insights
from compress.run.key import (
    Request,
)
from compress.run.networks import card_inputs, model_spec
from compress.run.recipe import ModelCard, Recipe, recipe_settings
from compress.run.report import write_run_report
from compress.run.stage import run_stage
from compress.run.stages import STAGES, stage_folder
from compress.run.tracking import tracking


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
    log: Sequence[str] = (),
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
        log: see `tracking`.

    Raises:
        CompressError: see `owned_run`, `read_teachers`, `load_data`, `claim_run`, `tracking`, and
            `run_recipe`.
    """
    with owned_run(folder):
        given = read_teachers(teachers)
        if isinstance(data, str):
            data = load_data(data, recipe.data, seed=recipe.seed, inputs=card_inputs(card))
        claim_run(folder, model=names[0], pipeline=names[1], data=data)
        facts = {
            **dict(zip(("model", "pipeline"), names, strict=True)),
            **{"data": data.name, "seed": recipe.seed},
            **{setting.name: setting.value for setting in recipe_settings(recipe)},
        }
        with tracking(log, facts, run=folder, report=folder / REPORT_JSON):
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
    add_insights(folder, data, recipe.insights)
    return write_run_report(folder)


def _resized_for(teacher: Teacher, data: Data, seed: int) -> Data:
    """Returns the dataset with the teacher's preprocessing."""
    if teacher.preprocess == data.preprocess:
        return data
    sized = dataclasses.replace(data.config, size=teacher.preprocess.size)
    return load_data(data.name, sized, seed=seed, inputs=inputs_of(teacher.preprocess))
