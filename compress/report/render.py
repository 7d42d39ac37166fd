"""Reports as tables for the terminal and as Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence

from rich.table import Table

from compress.cache import Measurements
from compress.distill.result import DistillResult
from compress.host import Host
from compress.kd.result import Ablation
from compress.log import count_of
from compress.measure.results import OperatorSummary, RunReport, StageReport
from compress.measure.statistics import PairedDifference
from compress.prune.result import PruneResult
from compress.report.tables import markdown_table, terminal_table
from compress.report.text import markdown_text

COLUMNS = (
    "stage", "params", "MACs", "size", "top-1 %", "95 % CI", "p50 ms",
    "change", "smaller", "faster",
)  # fmt: skip
"""The last three compare with the teacher. Narrow enough for a terminal of 80 columns."""

USE_COLUMNS = (
    "stage", "steady p50 / p90 / p99", "cold p50", "load, first run", "images/s", "memory",
    "times faster [95 % interval]", "than the previous stage", "runs timed", "duration",
)  # fmt: skip


def run_rows(report: RunReport) -> list[tuple[str, ...]]:
    """Returns the cells of the run's table, one row per stage; the teacher is the baseline."""
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
    table = terminal_table(COLUMNS, title=report.name, padding=0)
    table.columns[0].no_wrap = True
    for row in run_rows(report):
        table.add_row(*row)
    return table


def conditions(stage: StageReport) -> str:
    """Returns how and where a stage was measured, on one line."""
    versions = stage.host.versions
    return (
        f"ONNX Runtime {versions['onnxruntime']}, {count_of(stage.threads, 'thread')}, "
        f"batch {stage.batch}, {host_text(stage.host)}, {count_of(stage.n_images, 'test image')}, "
        f"{stage.created[:10]}"
    )


def host_text(host: Host) -> str:
    """Returns a machine's CPU, cores, and instruction sets."""
    isa = ", ".join(host.isa) or "no known vector extensions"
    return f"{host.cpu} ({count_of(host.cores, 'core')}, {isa})"


def run_markdown(report: RunReport) -> str:
    """Returns the run's report as Markdown."""
    lines = [
        f"# {markdown_text(report.name)}",
        "",
        f"**Ship `{report.ship}`.** {markdown_text(_sentence(report.verdict))}",
        "",
        markdown_table(COLUMNS, run_rows(report)),
        "",
        f"Measured on each stage's ONNX file: {conditions(report.stages[-1])}. Top-1 is on the "
        "test split, with its Wilson interval. The last three columns compare with the teacher: "
        "points of top-1, bytes on disk, and the ratio of latencies, with both files taking turns. "
        "Latencies and ratios are steady (back to back, caches warm) unless they are called cold "
        "(other work before each run). Memory: the peak beyond that before loading.",
        "",
        markdown_table(USE_COLUMNS, use_rows(report)),
    ]
    lines += ["", *(f"- {markdown_text(remark)}" for remark in report.remarks)]
    return "\n".join(lines).rstrip() + "\n"


def use_rows(report: RunReport) -> list[tuple[str, ...]]:
    """Returns the cells of the table of latencies, throughput, and memory, one row per stage."""
    rows: list[tuple[str, ...]] = []
    for stage in report.stages:
        low, high = stage.speedup_ci95
        step = ""
        if stage.step_speedup_ci95:
            step = f"[{stage.step_speedup_ci95[0]:.2f}, {stage.step_speedup_ci95[1]:.2f}]"
        rows.append(
            (
                *(stage.stage, steady_text(stage), ms_text(stage.cold_latency_ms_p50)),
                f"{ms_text(stage.load_ms)}, {ms_text(stage.first_ms)}",
                *(throughput_text(stage), memory_text(stage.memory_bytes)),
                *(f"{stage.speedup:.2f} [{low:.2f}, {high:.2f}]", step),
                *(str(stage.n_runs), f"{stage.seconds:.0f} s"),
            )
        )
    return rows


def stage_markdown(report: StageReport) -> str:
    """Returns a stage's report as Markdown."""
    low, high = report.top1_ci95
    balanced = []
    if report.balanced_top1 is not None:
        balanced = [("balanced top-1", f"{report.balanced_top1:.2f} %, the mean over classes")]
    changes = (("the teacher", report.change), ("the previous stage", report.step_change))
    rows = [
        ("file", f"`{report.file}`"),
        ("parameters", f"{report.parameters:,}"),
        ("MACs per image", f"{report.macs:,}"),
        ("size", f"{report.size_bytes:,} bytes"),
        (
            "top-1",
            f"{report.top1:.2f} % [{low:.2f}, {high:.2f}] on {count_of(report.n_images, 'image')}",
        ),
        *(("against " + name, change_text(change)) for name, change in changes if change),
        *balanced,
        ("steady latency p50 / p90 / p99", steady_text(report)),
        ("cold latency p50", ms_text(report.cold_latency_ms_p50)),
        ("load, first run", f"{ms_text(report.load_ms)}, {ms_text(report.first_ms)}"),
        ("images/s", throughput_text(report)),
        ("peak memory", memory_text(report.memory_bytes)),
        ("times faster than the teacher", f"{report.speedup:.2f}"),
        ("operators", operators_text(report.operators)),
        ("duration", f"{report.seconds:.0f} s"),
    ]
    if ablation := ablation_text(report):
        rows.append(("ablation", ablation))
    if report.findings:
        rows.append(("findings", markdown_text("; ".join(report.findings))))
    facts = {
        **dataclasses.asdict(report.result),
        "measurements": [dataclasses.asdict(row) for row in report.measurements],
    }
    tables = []
    for name, value in facts.items():
        title = name.replace("_", " ")
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            tables += [f"## {title.capitalize()}", "", _records_table(value), ""]
        elif value and name not in ("alone", "from_scratch"):
            rows.append((title, markdown_text(_detail(value))))
    lines = [f"# {report.stage}", "", markdown_table(("", ""), rows), "", *tables]
    return "\n".join([*lines, f"Measured with {conditions(report)}.", ""])


def steady_text(stage: StageReport) -> str:
    """Returns the quantiles of the steady latency: `0.081 / 0.083 / 0.101 ms`."""
    quantiles = (stage.latency_ms_p50, stage.latency_ms_p90, stage.latency_ms_p99)
    return " / ".join(f"{ms:.3f}" for ms in quantiles if ms is not None) + " ms"


def throughput_text(stage: StageReport) -> str:
    """Returns images per second by batch size: `14,200 (batch 8), 16,100 (batch 32)`."""
    rates = stage.images_per_second.items()
    return ", ".join(f"{rate:,.0f} (batch {batch})" for batch, rate in rates) or "-"


def memory_text(memory_bytes: int | None) -> str:
    """Returns the size of memory; a dash if it was not measured."""
    return "-" if memory_bytes is None else size_text(memory_bytes)


def ms_text(ms: float | None) -> str:
    """Returns milliseconds with a unit; a dash if they were not measured."""
    return "-" if ms is None else f"{ms:.3f} ms"


def ablation_text(stage: StageReport) -> str:
    """Returns whether the stage was worth its time; empty without --ablation."""
    result = stage.result
    if isinstance(result, DistillResult) and (alone := result.alone):
        return (
            f"{_helped('distillation', alone.gain)}: {stage.top1:.2f} % with the teacher, "
            f"{count_of(result.epochs, 'epoch')} in {alone.available_seconds:.0f} s; "
            f"{_trained(alone)} on labels alone"
        )
    if isinstance(result, PruneResult) and (new := result.from_scratch):
        return (
            f"{_helped('distilling and pruning', new.taught.gain)}: {stage.top1:.2f} % in "
            f"{new.alone.available_seconds:.0f} s; the pruned network from scratch: "
            f"{_trained(new.taught)} with the teacher, {_trained(new.alone)} on labels alone"
        )
    return ""


def _helped(what: str, gain: PairedDifference) -> str:
    verdict = "helped" if gain.points > 0 else "did not help"
    if not gain.is_significant:
        verdict = "made no significant difference"
    return f"{what} {verdict} ({change_text(gain)})"


def _trained(ablation: Ablation) -> str:
    epochs = count_of(ablation.epochs, "epoch")
    return f"{ablation.top1:.2f} % after {epochs} in {ablation.seconds:.0f} s"


def change_text(change: PairedDifference) -> str:
    """Returns a paired difference: `-0.12 points [-0.30, 0.06], 21 images gained and 33 lost`."""
    low, high = change.points_ci95
    return (
        f"{change.points:+.2f} points [{low:.2f}, {high:.2f}], {count_of(change.gained, 'image')} "
        f"gained and {change.lost} lost"
    )


def speedup_text(ratio: float) -> str:
    """Returns a speed ratio for a sentence: `1.8x faster than`, `1.2x slower than`."""
    if round(ratio, 1) == 1:
        return "as fast as"
    return f"{ratio:.1f}x faster than" if ratio > 1 else f"{1 / ratio:.1f}x slower than"


def _records_table(records: Sequence[Mapping[str, object]]) -> str:
    """Returns records, which may lack fields, as a table."""
    fields = list(dict.fromkeys(field for record in records for field in record))
    cells = [
        [markdown_text(_detail(record.get(field, ""))) for field in fields] for record in records
    ]
    return markdown_table([field.replace("_", " ") for field in fields], cells)


def operators_text(summary: OperatorSummary) -> str:
    """Returns how much of a graph is int8: `21 int8, 1 float, 2 conversions`."""
    return (
        f"{summary.n_int8} int8, {summary.n_float} float, "
        f"{count_of(summary.n_conversions, 'conversion')} in ONNX Runtime's optimized graph"
    )


def measured_text(row: Measurements) -> str:
    """Returns when a measurement was made: `layer latencies (measured 2026-11-20, spread 3 %)`."""
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


def short(count: int) -> str:
    """Returns a count with a suffix: 11.2 M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {suffix}"
    return str(count)


def size_text(size_bytes: int) -> str:
    """Returns a file size in decimal units: 44.7 MB."""
    return f"{short(size_bytes)}B" if size_bytes >= 1000 else f"{size_bytes} B"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
