"""Finding runs and reading their reports."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from compress.checkpoint import DESCRIPTION, REPORT_JSON, is_checkpoint
from compress.errors import CompressError
from compress.files import parse_json, read_text
from compress.measure.results import RunReport, StageReport
from compress.run.stages import STAGES, stage_folder

T = TypeVar("T")
RUN_FILE = "run.json"
"""Model, recipe, and data of a run; its presence marks a folder as a run."""


def is_run(folder: Path) -> bool:
    """Returns whether a folder is a run's."""
    return (folder / RUN_FILE).is_file()


def finished_stages(run: Path) -> dict[str, Path]:
    """Returns the folders of a run's finished stages, in the order of the run."""
    folders = {stage: stage_folder(run, stage) for stage in STAGES}
    return {stage: folder for stage, folder in folders.items() if folder.is_dir()}


def newest_run(runs: Path) -> Path:
    """Returns the run whose stages changed last.

    Raises:
        CompressError: there is none.
    """
    made = [
        path
        for stage in STAGES
        for path in runs.glob(f"*/{stage_folder(Path(), stage)}/{DESCRIPTION}")
    ]
    if not made:
        raise CompressError(f"no runs in {runs}/; start one with `compress run resnet18`")
    return max(made, key=lambda path: path.stat().st_mtime).parent.parent


def newest_stage_before(stage: str, runs: Path) -> Path:
    """Returns the folder of the last finished stage before `stage` in the newest run.

    Raises:
        CompressError: the newest run has none.
    """
    run = newest_run(runs)
    names = list(STAGES)
    for name in reversed(names[: names.index(stage)]):
        if is_checkpoint(folder := stage_folder(run, name)):
            return folder
    raise CompressError(
        f"{run} has no finished stage before {stage}; specify a checkpoint with --in"
    )


def find_onnx(model: Path) -> Path:
    """Returns an ONNX file: the path itself, a checkpoint's file, or the one that a run ships.

    Raises:
        CompressError: the folder is neither a checkpoint nor a run.
    """
    if not model.is_dir():
        return model
    if is_run(model):
        stages = finished_stages(model)
        if not stages:
            raise CompressError(f"{model} has no finished stage")
        model = list(stages.values())[-1]
    if not is_checkpoint(model):
        raise CompressError(f"{model} is neither a run nor a checkpoint; specify an ONNX file")
    return model / read_stage_report(model).file


def read_stage_report(folder: Path) -> StageReport:
    """Reads the report in a stage's folder.

    Raises:
        CompressError: it is missing or damaged.
    """
    return _read(folder / REPORT_JSON, _stage_report)


def read_run_report(path: Path) -> RunReport:
    """Reads a run's report file.

    Raises:
        CompressError: it is missing or damaged.
    """
    return _read(path, _run_report)


def read_report(path: Path) -> RunReport | StageReport:
    """Reads a report file, of a run or of a stage.

    Raises:
        CompressError: it is missing or damaged.
    """

    def either(raw: Any) -> RunReport | StageReport:
        of_run = isinstance(raw, Mapping) and "stages" in raw
        return _run_report(raw) if of_run else _stage_report(raw)

    return _read(path, either)


def _run_report(raw: Any) -> RunReport:
    report = TypeAdapter(RunReport).validate_python(raw)
    if not report.stages:
        raise CompressError("it has no stages")
    if report.stages[0].stage != "teacher":
        raise CompressError("its first stage is not the teacher")
    stages = tuple(_stage_report(stage) for stage in raw["stages"])
    return dataclasses.replace(report, stages=stages)


def _stage_report(raw: Any) -> StageReport:
    report = TypeAdapter(StageReport).validate_python(raw)
    if report.stage not in STAGES:
        raise CompressError(f"there is no stage {report.stage}")
    if not isinstance(raw["result"], Mapping):
        raise CompressError("result must be an object")
    kind: TypeAdapter[Any] = TypeAdapter(STAGES[report.stage].result)
    result = kind.validate_json(json.dumps(raw["result"]), strict=True)  # without type conversion
    return dataclasses.replace(report, result=result)


def _read(path: Path, parse: Callable[[Any], T]) -> T:
    try:
        return parse(parse_json(read_text(path)))
    except (OSError, ValueError):
        raise CompressError(f"{path} is missing or damaged; run the stage again") from None
