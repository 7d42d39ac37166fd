"""The run's report, assembled from its stages' reports."""

import itertools
from pathlib import Path

from compress.checkpoint import REPORT_HTML, REPORT_JSON, REPORT_MD, load_checkpoint
from compress.errors import CompressError
from compress.export.result import ExportResult
from compress.files import printable, write_json, write_text
from compress.insights.results import read_insights
from compress.measure.results import RunReport, StageReport, read_history
from compress.report.check import conditions_of
from compress.report.layers import read_layers_report
from compress.report.render import (
    ablation_text,
    change_text,
    measured_text,
    operators_text,
    run_markdown,
)
from compress.report.run_page import RunFacts, run_html
from compress.run.insights import compared_by
from compress.run.lookup import RUN_FILE, finished_stages, is_run, read_stage_report
from compress.run.stages import STAGES, stage_folder

GATES_WORTH_A_REMARK = 20
"""Percent of the time."""


def write_run_report(run: Path) -> RunReport:
    """Reads the reports of a run's stages and writes the run's own.

    Raises:
        CompressError: the folder is not a run's, or has no finished stage.
    """
    report = collect(run)
    if not is_run(run):  # do not overwrite a file that is not ours
        raise CompressError(f"{run} is not a run folder: it has no {RUN_FILE}")
    write_json(run / REPORT_JSON, report)
    write_text(run / REPORT_MD, run_markdown(report))
    write_text(run / REPORT_HTML, run_html(_facts(run, report)))
    return report


def _facts(run: Path, report: RunReport) -> RunFacts:
    """Reads what the run's page shows beside its report."""
    folders = finished_stages(run)
    histories = {stage: read_history(folder) for stage, folder in folders.items()}
    sensitivities = [read_layers_report(folder) for folder in folders.values()]
    digests = {stage.digest for stage in report.stages}
    insights = read_insights(run)
    return RunFacts(
        report=report,
        histories={stage: rows for stage, rows in histories.items() if rows is not None},
        steps={stage: load_checkpoint(one).description.step for stage, one in folders.items()},
        insights=insights if insights and insights.compared == compared_by(run) else None,
        layers=next((one for one in sensitivities if one and one.checkpoint in digests), None),
    )


def collect(run: Path) -> RunReport:
    """Assembles the run's report from its stages'."""
    folders = finished_stages(run)
    if not folders and (run / REPORT_MD).is_file():
        raise CompressError(
            f"{run} is the folder of one stage, not of a run; its report is {run / REPORT_MD}"
        )
    if not folders:
        raise CompressError(f"{run} has no finished stage{_in_progress(run)}")
    if "teacher" not in folders:
        raise CompressError(
            f"{run} has no {stage_folder(run, 'teacher').name}, with which the other stages are "
            "compared; start the run again"
        )
    reports = {stage: read_stage_report(folder) for stage, folder in folders.items()}
    for stage, one in reports.items():
        if one.stage != stage:
            raise CompressError(f"{folders[stage]} contains the report of stage {one.stage}")
    stages = tuple(reports.values())
    last = stages[-1]
    ship = f"{folders[last.stage].name}/{last.file}"
    return RunReport(
        name=printable(run.name),
        data=printable(load_checkpoint(folders[last.stage]).description.step.data),
        stages=stages,
        ship=ship,
        verdict=_verdict(last),
        remarks=tuple(map(printable, _remarks(stages))),
    )


def _in_progress(run: Path) -> str:
    """Returns what to do about a run without a finished stage."""
    if any(run.glob("*.partial")):
        return " yet; the first one is in progress or was interrupted"
    return "; start one with `compress run`"


def _verdict(last: StageReport) -> str:
    if isinstance(last.result, ExportResult):
        return last.result.reason
    names = list(STAGES)
    missing = ", ".join(names[names.index(last.stage) + 1 :])
    return f"the run is unfinished: this file is from {last.stage}; still to run: {missing}"


def _remarks_on_operators(stage: StageReport) -> list[str]:
    operators = stage.operators
    if not operators.n_int8:
        return []
    remarks = [f"{stage.file}: {operators_text(operators)}"]
    if operators.gates_share > GATES_WORTH_A_REMARK:
        remarks.append(
            f"activation functions and gates take {operators.gates_share:.0f} % of {stage.file}'s "
            "time; a student with ReLU in place of HardSwish or SiLU would be faster"
        )
    return remarks


def _remarks_on_cache(stage: StageReport) -> list[str]:
    """Returns a remark on cached measurements that influenced a stage."""
    cached = [measured_text(row) for row in stage.measurements if row.cached]
    if not cached:
        return []
    return [
        f"{stage.stage} used cached measurements: {', '.join(cached)}; --remeasure measures again"
    ]


def _remarks_on_machines(stages: tuple[StageReport, ...]) -> list[str]:
    used = {stage.stage: conditions_of(stage) for stage in stages}
    if len(set(used.values())) == 1:
        return []
    seen = "; ".join(f"{stage}: {conditions}" for stage, conditions in used.items())
    return [
        "latencies are from different machines or settings and do not compare, unlike speedups "
        f"({seen}); --remeasure measures all of them here"
    ]


def _remarks_on_balance(stages: tuple[StageReport, ...]) -> list[str]:
    scores = [
        f"{stage.stage} {stage.balanced_top1:.2f} %"
        for stage in stages
        if stage.balanced_top1 is not None
    ]
    if not scores:
        return []
    return [f"classes differ in size; balanced top-1 (mean over classes): {', '.join(scores)}"]


def _remarks(stages: tuple[StageReport, ...]) -> list[str]:
    """Returns what a reader should know: stages that did not pay off, outdated ones, findings."""
    remarks = []
    digests = {stage.digest for stage in stages}
    for before, stage in itertools.pairwise(stages):
        if stage.parent not in digests:
            remarks.append(
                f"{stage.stage} was made from an earlier version of the previous stage; rerun it"
            )
        change, speedup = stage.step_change, stage.step_speedup_ci95
        if stage.parent == stages[0].digest:
            change, speedup = stage.change, stage.speedup_ci95
        if stage.parent == before.digest != stage.digest and speedup and speedup[1] < 1:
            verdict = "did not pay off on this machine"
            if change and change.is_significant and change.points > 0:  # as with small teachers
                verdict = f"gained {change.points:.2f} points at the cost of latency"
            remarks.append(
                f"{stage.stage} {verdict}: its file has {speedup[0]:.2f} to {speedup[1]:.2f} times "
                "the speed of the one it started from"
            )
        if change and change.is_significant and change.points < 0:
            remarks.append(f"{stage.stage} cost top-1: {change_text(change)}")
        if ablation := ablation_text(stage):
            remarks.append(ablation)
    remarks += _remarks_on_machines(stages)
    remarks += _remarks_on_balance(stages)
    for stage in stages:
        remarks += [f"{stage.stage}: {finding}" for finding in stage.findings]
        remarks += _remarks_on_cache(stage)
    remarks += _remarks_on_operators(stages[-1])
    exported = stages[-1].result
    if isinstance(exported, ExportResult):
        remarks += [
            f"{file} and torch agree on {parity.top1_agreement:.2f} % of {parity.n_images} test "
            f"images; largest logit difference {parity.max_difference:.2g}"
            for file, parity in exported.parity.items()
        ]
    return remarks
