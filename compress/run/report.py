"""The run's report, put together from its stages' reports."""

from __future__ import annotations

import itertools
from pathlib import Path

from compress.cache import Measurements
from compress.checkpoint import REPORT_HTML, REPORT_JSON, REPORT_MD, STAGES, load_checkpoint
from compress.errors import CompressError
from compress.files import printable, write_json, write_text
from compress.measure.results import RunReport, StageReport, read_history, read_stage_report
from compress.report.html import run_html
from compress.report.render import (
    ablation_text,
    measured_text,
    operators_text,
    run_markdown,
)
from compress.run.lookup import RUN_FILE, is_run

GATES_WORTH_A_WORD = 20
"""Percent of the time."""


def write_run_report(run: Path) -> RunReport:
    """Reads the reports of a run's stages and writes the run's own beside them.

    Raises:
        CompressError: the folder holds no finished stage.
    """
    report = collect(run)
    if not is_run(run):  # its report would take the place of somebody's
        raise CompressError(f"{run} is no run of compress: it has no {RUN_FILE}")
    write_json(run / REPORT_JSON, report)
    write_text(run / REPORT_MD, run_markdown(report))
    read = {stage: read_history(folder) for stage, folder in finished_stages(run).items()}
    histories = {stage: rows for stage, rows in read.items() if rows is not None}
    write_text(run / REPORT_HTML, run_html(report, histories))
    return report


def collect(run: Path) -> RunReport:
    """Puts the run's report together from its stages'."""
    folders = finished_stages(run)
    if not folders and (run / REPORT_MD).is_file():
        raise CompressError(
            f"{run} is one stage's folder, not a run's; its report is {run / REPORT_MD}"
        )
    if not folders:
        raise CompressError(f"{run} holds no finished stage; start one with `compress run`")
    reports = {stage: read_stage_report(folder) for stage, folder in folders.items()}
    for stage, one in reports.items():
        if one.stage != stage:
            raise CompressError(f"{folders[stage]} holds the report of the stage {one.stage}")
    stages = tuple(reports.values())
    last = stages[-1]
    ship = f"{folders[last.stage].name}/{last.file}"
    return RunReport(
        name=printable(run.name),
        data=printable(load_checkpoint(folders[last.stage]).description.step.data),
        stages=stages,
        ship=ship,
        verdict=str(last.details.get("reason", _unfinished(last.stage))),
        remarks=tuple(map(printable, _remarks(stages))),
    )


def _unfinished(newest: str) -> str:
    missing = ", ".join(STAGES[STAGES.index(newest) + 1 :])
    return f"the run is not finished: this is what {newest} made, {missing} did not run yet"


def finished_stages(run: Path) -> dict[str, Path]:
    """Returns the folders of a run's finished stages, in the stages' order."""
    folders = {stage: run / f"{place}-{stage}" for place, stage in enumerate(STAGES)}
    return {stage: folder for stage, folder in folders.items() if folder.is_dir()}


def _remarks_on_operators(stage: StageReport) -> list[str]:
    operators = stage.operators
    if not operators.n_int8:
        return []
    remarks = [f"{stage.file}: {operators_text(operators)}"]
    if operators.gates_share > GATES_WORTH_A_WORD:
        remarks.append(
            f"activation functions and gates take {operators.gates_share:.0f} % of {stage.file}'s "
            "time; a student with ReLU in place of HardSwish or SiLU would be faster"
        )
    return remarks


def _remarks_on_memory(stage: StageReport) -> list[str]:
    """What decided a stage and was not measured while it ran."""
    rows = [Measurements(**row) for row in stage.details.get("measurements", ())]
    cached = [measured_text(row) for row in rows if row.cached]
    if not cached:
        return []
    return [
        f"{stage.stage} used cached measurements: {', '.join(cached)}; --remeasure measures again"
    ]


def _remarks_on_balance(stages: tuple[StageReport, ...]) -> list[str]:
    told = [
        f"{stage.stage} {stage.balanced_top1:.2f} %"
        for stage in stages
        if stage.balanced_top1 is not None
    ]
    if not told:
        return []
    return [f"the classes differ in size; balanced top-1, the mean over classes: {', '.join(told)}"]


def _remarks(stages: tuple[StageReport, ...]) -> list[str]:
    """What a reader should know: stages that did not pay, and ones made from older versions."""
    remarks = []
    digests = {stage.digest for stage in stages}
    for before, stage in itertools.pairwise(stages):
        if stage.parent not in digests:
            remarks.append(
                f"{stage.stage} was made from an earlier version of the stage before it; "
                "run it again"
            )
        low, high = stage.step_speedup_ci95 or stage.speedup_ci95
        if stage.parent == before.digest != stage.digest and high < 1:
            verdict = "did not pay on this machine"
            if stage.top1_ci95[0] > before.top1:  # a large student of small teachers
                verdict = f"bought {stage.top1 - before.top1:.2f} points of top-1 with time"
            remarks.append(
                f"{stage.stage} {verdict}: its file has {low:.2f} to {high:.2f} times the speed of "
                "the one it started from"
            )
        if stage.top1_ci95[1] < before.top1:
            remarks.append(f"{stage.stage} cost {before.top1 - stage.top1:.2f} points of top-1")
        if "alone" in stage.details:
            remarks.append(ablation_text(stage))
    remarks += _remarks_on_balance(stages)
    for stage in stages:
        remarks += [f"{stage.stage}: {finding}" for finding in stage.details.get("findings", [])]
        remarks += _remarks_on_memory(stage)
    remarks += _remarks_on_operators(stages[-1])
    parity = stages[-1].details.get("parity", {})
    for file, facts in parity.items():
        remarks.append(
            f"{file} and torch agree on {facts['top1_agreement']:.2f} % of {facts['n_images']} "
            f"test images; largest difference of two logits {facts['max_difference']:.2g}"
        )
    return remarks
