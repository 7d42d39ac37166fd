"""Sections of a run's page about its files: what each stage did, and accuracy against latency."""

import itertools
from collections.abc import Sequence

from compress.measure.results import RunReport, StageReport
from compress.prune.result import PruneResult
from compress.report.charts import Series, axis_of, bar, change_bar, chart
from compress.report.html import cells, figure, folded, table
from compress.report.render import COLUMNS, run_rows, size_text
from compress.report.text import html_text


def stages_html(report: RunReport) -> str:
    """Returns the waterfall: what each stage did to size, latency, and accuracy."""
    files = _files(report)
    size = axis_of([stage.size_bytes for _, stage in files], log=True)
    latency = axis_of([stage.latency_ms_p50 for _, stage in files], log=True)
    top1 = axis_of([stage.top1 for _, stage in files])
    (name, first), *_ = files
    rows = [
        [
            html_text(name),
            bar(size, first.size_bytes, text=size_text(first.size_bytes)),
            bar(latency, first.latency_ms_p50, text=f"{first.latency_ms_p50:.3f} ms"),
            bar(top1, first.top1, text=f"{first.top1:.2f} %"),
        ]
    ]
    for (_, old), (name, new) in itertools.pairwise(files):
        smaller = _ratio(old.size_bytes / new.size_bytes, "smaller", "larger")
        faster = _ratio(new.speedup / old.speedup, "faster", "slower")
        gained = f"<small>{new.top1 - old.top1:+.2f}</small>"
        old_ms, new_ms = old.latency_ms_p50, new.latency_ms_p50
        rows.append(
            [
                html_text(name),
                change_bar(
                    *(size, old.size_bytes, new.size_bytes),
                    text=f"{size_text(new.size_bytes)} {smaller}",
                    higher_is_better=False,
                ),
                change_bar(
                    *(latency, old_ms, new_ms),
                    text=f"{new_ms:.3f} ms {faster}",
                    higher_is_better=False,
                ),
                change_bar(
                    *(top1, old.top1, new.top1),
                    text=f"{new.top1:.2f} % {gained}",
                    higher_is_better=True,
                ),
            ]
        )
    waterfall = table(
        "Green improves, red worsens; size and latency on logarithmic scales.",
        ("stage", "size", "latency p50", "top-1"),
        rows,
        wide=True,
    )
    numbers = table(
        "The last three columns compare with the teacher.", COLUMNS, map(cells, run_rows(report))
    )
    return waterfall + folded("All numbers", numbers)


def _ratio(ratio: float, better: str, worse: str) -> str:
    if f"{ratio:.2f}" == "1.00":
        return ""
    return f"<small>{max(ratio, 1 / ratio):.1f}x {better if ratio > 1 else worse}</small>"


def tradeoff_html(report: RunReport) -> str:
    """Returns accuracy against latency: each file, and each cut of pruning."""
    files = _files(report)
    cuts = [
        (stage, number, cut)
        for stage in report.stages
        if isinstance(stage.result, PruneResult)
        for number, cut in enumerate(stage.result.iterations, 1)
    ]
    front = _pareto([(stage.latency_ms_p50, stage.top1) for _, stage in files])
    series = [
        Series(name="Pareto front", color=0, points=sorted(front), line=True, dots=False),
        Series(
            name="file: test images, ONNX Runtime, 95 % interval",
            color=1,
            points=[(stage.latency_ms_p50, stage.top1) for _, stage in files],
            labels=[stage.stage for _, stage in files],
            intervals=[stage.top1_ci95 for _, stage in files],
        ),
    ]
    if cuts:
        series.append(
            Series(
                name="cut while pruning: validation images, PyTorch",
                color=2,
                points=[(cut.measured_ms, cut.top1_trained) for _, _, cut in cuts],
                hollow=True,
            )
        )
    points = [point for one in series for point in one.points]
    ends = [end for _, stage in files for end in stage.top1_ci95]
    rows = [
        [
            html_text(name),
            f"{stage.latency_ms_p50:.3f}",
            f"{stage.top1:.2f}",
            size_text(stage.size_bytes),
            "yes" if (stage.latency_ms_p50, stage.top1) in front else "",
            "test",
        ]
        for name, stage in files
    ] + [
        [
            html_text(f"{stage.stage}, cut {number} in {stage.result.precision}"),
            f"{cut.measured_ms:.3f}",
            f"{cut.top1_trained:.2f}",
            size_text(cut.size_bytes),
            "",
            "validation",
        ]
        for stage, number, cut in cuts
    ]
    drawn = chart(
        series,
        axis_of([across for across, _ in points], title="latency p50, ms", log=True),
        axis_of([*(up for _, up in points), *ends], title="top-1, %"),
        summary="Accuracy against latency of every file; the table below has its numbers.",
    )
    caption = "Farther left is faster, higher is more accurate."
    columns = ("file", "ms", "top-1 %", "size", "on the front", "images")
    return figure(caption, drawn) + folded("Numbers", table(caption, columns, rows))


def _files(report: RunReport) -> list[tuple[str, StageReport]]:
    """Returns the measured files; stages with the same one share the last measurement.

    An export that ships the float file has the digest of the int8 network.
    """
    named: dict[tuple[str, int, str], list[StageReport]] = {}
    for stage in report.stages:
        named.setdefault((stage.digest, stage.size_bytes, stage.correct), []).append(stage)
    return [(", ".join(one.stage for one in same), same[-1]) for same in named.values()]


def _pareto(points: Sequence[tuple[float, float]]) -> set[tuple[float, float]]:
    """Returns the points that no other one beats in both latency and accuracy."""
    return {
        (ms, top1)
        for ms, top1 in points
        if not any(other != (ms, top1) and other[0] <= ms and other[1] >= top1 for other in points)
    }
