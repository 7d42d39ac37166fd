"""From a report's data to the terminal and to Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from compress.cache import Measurements
from compress.files import printable
from compress.host import Host
from compress.measure.results import OperatorSummary, RunReport, StageReport
from compress.report.text import markdown_text

COLUMNS = (
    "stage", "params", "MACs", "size", "top-1 %", "95 % CI", "p50 ms",
    "change", "smaller", "faster",
)  # fmt: skip
"""The last three compare with the teacher. Narrow enough for a terminal of 80 columns."""


def run_rows(report: RunReport) -> list[tuple[str, ...]]:
    """Returns the cells of the run's table, a row a stage; changes are against the teacher."""
    teacher = report.stages[0]
    return [_row(stage, teacher) for stage in report.stages]


def _row(stage: StageReport, teacher: StageReport) -> tuple[str, ...]:
    low, high = stage.top1_ci95
    changes = ("", "", "")
    if stage is not teacher:
        changes = (
            f"{stage.top1 - teacher.top1:+.2f}",
            f"{teacher.size_bytes / stage.size_bytes:.1f}x",
            f"{stage.speedup:.1f}x",
        )
    return (
        stage.stage,
        short(stage.parameters),
        short(stage.macs),
        size_text(stage.size_bytes),
        f"{stage.top1:.2f}",
        f"{low:.1f}-{high:.1f}",
        f"{stage.latency_ms_p50:.3f}",
        *changes,
    )


def run_table(report: RunReport) -> Table:
    """Returns the run's table for the terminal."""
    table = Table(
        title=printable(report.name),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for row in run_rows(report):
        table.add_row(*row)
    return table


def conditions(stage: StageReport) -> str:
    """Returns one line on how and where a stage was measured."""
    versions = stage.host.versions
    return (
        f"ONNX Runtime {versions['onnxruntime']}, {stage.threads} thread"
        f"{'s' * (stage.threads > 1)}, batch {stage.batch}, {host_text(stage.host)}, "
        f"{stage.n_images} test images, {stage.created[:10]}"
    )


def host_text(host: Host) -> str:
    """Returns a machine in words."""
    return f"{host.cpu} ({host.cores} cores, {', '.join(host.isa) or 'no vector extensions known'})"


def run_markdown(report: RunReport) -> str:
    """Returns the run's report as Markdown."""
    lines = [
        f"# {markdown_text(report.name)}",
        "",
        f"**Ship `{report.ship}`.** {markdown_text(_sentence(report.verdict))}",
        "",
        markdown_table(COLUMNS, run_rows(report)),
        "",
        f"Measured on each stage's ONNX file: {conditions(report.stages[-1])}. Top-1 is of the "
        "test split, with its Wilson interval. The last three columns compare with the teacher: "
        "points of top-1, bytes on disk, and the median ratio of latencies, both files run in "
        "turns in the same process.",
        "",
        "| stage | latency p50 / p90 | times faster [95 % interval] | than the stage before "
        "| runs timed | stage took |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for stage in report.stages:
        low, high = stage.speedup_ci95
        step = ""
        if stage.step_speedup_ci95:
            step = f"[{stage.step_speedup_ci95[0]:.2f}, {stage.step_speedup_ci95[1]:.2f}]"
        lines.append(
            f"| {stage.stage} | {stage.latency_ms_p50:.3f} / {stage.latency_ms_p90:.3f} ms "
            f"| {stage.speedup:.2f} [{low:.2f}, {high:.2f}] | {step} | {stage.n_runs} "
            f"| {stage.seconds:.0f} s |"
        )
    lines += ["", *(f"- {markdown_text(remark)}" for remark in report.remarks)]
    return "\n".join(lines).rstrip() + "\n"


def stage_markdown(report: StageReport) -> str:
    """Returns a stage's report as Markdown."""
    low, high = report.top1_ci95
    balanced = []
    if report.balanced_top1 is not None:
        balanced = [("balanced top-1", f"{report.balanced_top1:.2f} %, the mean over classes")]
    rows = [
        ("file", f"`{report.file}`"),
        ("parameters", f"{report.parameters:,}"),
        ("MACs per image", f"{report.macs:,}"),
        ("size", f"{report.size_bytes:,} bytes"),
        ("top-1", f"{report.top1:.2f} % [{low:.2f}, {high:.2f}] on {report.n_images} images"),
        *balanced,
        ("latency p50 / p90", f"{report.latency_ms_p50:.3f} / {report.latency_ms_p90:.3f} ms"),
        ("against the teacher", f"{report.speedup:.2f} times faster"),
        ("operators", operators_text(report.operators)),
        ("the stage took", f"{report.seconds:.0f} s"),
    ]
    tables = []
    for name, value in report.details.items():
        title = name.replace("_", " ")
        if name == "alone":
            rows.append(("against the student alone", ablation_text(report)))
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            tables += [f"## {title.capitalize()}", "", _records_table(value), ""]
        else:
            rows.append((title, markdown_text(_detail(value))))
    lines = [f"# {report.stage}", "", markdown_table(("", ""), rows), "", *tables]
    return "\n".join([*lines, f"Measured with {conditions(report)}.", ""])


def ablation_text(stage: StageReport) -> str:
    """Returns whether the teacher paid, of a distillation with its ablation (`Alone`)."""
    alone = stage.details["alone"]
    gain = stage.top1 - alone["top1"]
    (low, high), (alone_low, alone_high) = stage.top1_ci95, alone["top1_ci95"]
    verdict = "the teacher paid" if gain > 0 else "the teacher did not pay"
    if low <= alone_high and alone_low <= high:
        verdict = "whether the teacher paid is within the test's uncertainty"
    return (
        f"{verdict} ({gain:+.2f} points): with it {stage.top1:.2f} % in "
        f"{_epochs(alone['kd_epochs'])} and {alone['kd_seconds']:.0f} s, alone "
        f"{alone['top1']:.2f} % in {_epochs(alone['epochs'])} and {alone['seconds']:.0f} s"
    )


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


def _records_table(records: Sequence[Mapping[str, object]]) -> str:
    """Returns records, which may lack fields, as a table."""
    fields = list(dict.fromkeys(field for record in records for field in record))
    cells = [
        [markdown_text(_detail(record.get(field, ""))) for field in fields] for record in records
    ]
    return markdown_table([field.replace("_", " ") for field in fields], cells)


def operators_text(summary: OperatorSummary) -> str:
    """Returns how much of a graph runs on integers: `21 int8, 1 float, 2 conversions`."""
    return (
        f"{summary.n_int8} int8, {summary.n_float} float, {summary.n_conversions} conversions "
        "in ONNX Runtime's optimized graph"
    )


def measured_text(row: Measurements) -> str:
    """Returns from when measurements are: `layer latencies (measured 2026-11-20, spread 3 %)`."""
    return f"{row.what} (measured {row.measured[:10]}, spread {row.spread_percent:.0f} %)"


def _detail(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "; ".join(_detail(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(
            f"{name.replace('_', ' ')} {_detail(item)}" for name, item in value.items()
        )
    return str(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def short(count: int) -> str:
    """Returns a count with a suffix: 11.2 M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {suffix}"
    return str(count)


def size_text(size_bytes: int) -> str:
    """Returns a file size in decimal units, as disks are sold: 44.7 MB."""
    return f"{short(size_bytes)}B" if size_bytes >= 1000 else f"{size_bytes} B"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
