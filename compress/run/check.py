"""Reads what `compress check` and `compress compare` judge."""

from pathlib import Path

from compress.checkpoint import REPORT_JSON, is_checkpoint, load_checkpoint
from compress.data.names import short_name
from compress.errors import CompressError
from compress.export.result import ExportResult
from compress.measure.results import RunReport
from compress.report.check import Judged
from compress.run.lookup import is_run, read_report, read_stage_report
from compress.run.stages import stage_folder


def read_judged(path: Path) -> Judged:
    """Reads the report of a run, of a stage's folder, or in a file.

    Raises:
        CompressError: it is missing or damaged, or the run is unfinished.
    """
    file = path / REPORT_JSON if path.is_dir() else path
    report = read_report(file)
    if isinstance(report, RunReport):
        last = report.stages[-1]
        if not isinstance(last.result, ExportResult):
            raise CompressError(
                f"{path} is unfinished: it ends with stage {last.stage}; run it to the end, or "
                "specify the folder of a stage"
            )
        return Judged(
            name=report.name,
            data=short_name(report.data),  # folders have other paths on other machines
            file=last,
            teacher=report.stages[0],
        )
    run = file.parent.parent
    teacher = stage_folder(run, "teacher")
    in_run = is_run(run) and teacher.is_dir()
    return Judged(
        name=f"{run.name}/{file.parent.name}" if in_run else file.parent.name,
        data=_data_of(file.parent),
        file=report,
        teacher=read_stage_report(teacher) if in_run else None,
    )


def _data_of(folder: Path) -> str:
    """Returns the short name of a stage's dataset; empty if its checkpoint is not there."""
    return (
        short_name(load_checkpoint(folder).description.step.data) if is_checkpoint(folder) else ""
    )
