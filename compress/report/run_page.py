"""The page of a run, rendered from its JSON files: one section a function, in the page's order."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compress.checkpoint import REPORT_JSON, Step
from compress.files import to_json
from compress.insights.results import INSIGHTS_JSON, Insights
from compress.log import count_of
from compress.measure.results import RunReport, StageReport
from compress.prune.result import PruneResult
from compress.report.charts import Series, axis_of, bar, change_bar, chart
from compress.report.html import (
    cells,
    document,
    download,
    figure,
    folded,
    heading,
    paragraph,
    section,
    table,
)
from compress.report.insights import insight_sections
from compress.report.layers import LAYERS_JSON, LayersReport, layers_html
from compress.report.pruning import cuts_html, widths_html
from compress.report.render import COLUMNS, conditions, host_text, run_rows, size_text, speedup_text
from compress.report.text import html_text

HISTORY_COLUMNS = ("epoch", "px", "loss", "train %", "validation %", "images/s", "precision")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """All that the page shows."""

    report: RunReport
    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows of `history.jsonl` of the stages that trained."""
    lineage: Sequence[Step] = ()
    """How the last stage's checkpoint was made."""
    insights: Insights | None = None
    """`insights.json` of the run."""
    layers: LayersReport | None = None
    """`sensitivity.json` of a stage."""


def run_html(facts: RunFacts) -> str:
    """Returns the page of a run."""
    report = facts.report
    sections = [
        ("stages", "Stage by stage", _stages(report)),
        ("tradeoff", "Accuracy against latency", _tradeoff(report)),
        ("training", "Training", _training(facts.histories)),
        ("widths", "Widths", _widths(report)),
        ("int8", "int8, layer by layer", layers_html(facts.layers) if facts.layers else ""),
        *(insight_sections(facts.insights) if facts.insights else ()),
        ("details", "Details", _details(facts)),
    ]
    shown = [one for one in sections if one[2]]
    links = "".join(f"<a href='#{name}'>{html_text(title)}</a>" for name, title, _ in shown)
    return document(
        report.name,
        f"<header>{heading(report.name)}{_verdict(report)}</header>"
        f"<nav aria-label='Sections'>{links}</nav>"
        f"<main>{''.join(section(*one) for one in shown)}</main>",
    )


def _verdict(report: RunReport) -> str:
    """Returns the verdict in one sentence, and the three numbers that it rests on."""
    teacher, last = report.stages[0], report.stages[-1]
    smaller = f"{teacher.size_bytes / last.size_bytes:.1f}x smaller"
    speed = speedup_text(last.speedup)
    sentence = (
        f"<p class='verdict'>Ship <code>{html_text(report.ship)}</code>: {smaller} and {speed} the "
        f"teacher, top-1 {last.top1:.2f} % against {teacher.top1:.2f} %.</p>"
    )
    tiles = (
        ("Size", size_text(last.size_bytes), f"teacher {size_text(teacher.size_bytes)}"),
        (
            "Latency p50",
            f"{last.latency_ms_p50:.3f} ms",
            f"teacher {teacher.latency_ms_p50:.3f} ms",
        ),
        ("Top-1", f"{last.top1:.2f} %", f"{last.top1 - teacher.top1:+.2f} points"),
    )
    boxes = "".join(
        f"<div class='tile'><dt>{name}</dt><dd><span class='big'>{value}</span><br>"
        f"<small>{note}</small></dd></div>"
        for name, value, note in tiles
    )
    return (
        f"{sentence}{paragraph(_sentence(report.verdict))}<dl class='tiles'>{boxes}</dl>"
        f"{paragraph(f'{report.data}; {conditions(last)}', 'note')}"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _stages(report: RunReport) -> str:
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


def _tradeoff(report: RunReport) -> str:
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
    """Returns the measured files; stages with the same network share the last one's."""
    named: dict[str, list[StageReport]] = {}
    for stage in report.stages:
        named.setdefault(stage.digest, []).append(stage)
    return [(", ".join(one.stage for one in same), same[-1]) for same in named.values()]


def _pareto(points: Sequence[tuple[float, float]]) -> set[tuple[float, float]]:
    """Returns the points that no other one beats in both latency and accuracy."""
    return {
        (ms, top1)
        for ms, top1 in points
        if not any(other != (ms, top1) and other[0] <= ms and other[1] >= top1 for other in points)
    }


def _training(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns the training curves of each stage."""
    if not histories:
        return ""
    curves = "".join(f"<div>{_curves(stage, rows)}</div>" for stage, rows in histories.items())
    note = paragraph(
        "Top-1 in PyTorch: how training went, not what ships. Training images are augmented, which "
        "makes them harder. Each epoch is scored at the image size that it was trained with.",
        "note",
    )
    return f"{note}<div class='columns'>{curves}</div>"


def _curves(stage: str, rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = (("training", "train_top1", 0), ("validation", "validation_top1", 1))
    series = [
        Series(
            name=name,
            color=color,
            points=[(row["epoch"], row[key]) for row in rows],
            line=True,
            dashed=not color,
            dots=False,
        )
        for name, key, color in kinds
    ]
    sizes = dict.fromkeys(row["image_size"] for row in rows)
    drawn = chart(
        series,
        axis_of([row["epoch"] for row in rows], title="epoch"),
        axis_of([up for one in series for _, up in one.points], title="top-1, %"),
        summary=f"Training and validation top-1 of {stage} by epoch; the table has the numbers.",
    )
    numbers = [
        [
            str(row["epoch"]),
            str(row["image_size"]),
            f"{row['loss']:.3f}",
            f"{row['train_top1']:.2f}",
            f"{row['validation_top1']:.2f}",
            f"{row['images_per_second']:.0f}",
            html_text(row["precision"]),
        ]
        for row in rows
    ]
    caption = f"{stage}: {count_of(len(rows), 'epoch')} at {', '.join(map(str, sizes))} px"
    return figure(caption, drawn) + folded("Numbers", table(caption, HISTORY_COLUMNS, numbers))


def _widths(report: RunReport) -> str:
    pruned = [stage.result for stage in report.stages if isinstance(stage.result, PruneResult)]
    return "".join(
        widths_html(result) + folded("Each cut", cuts_html(result))
        for result in pruned
        if result.iterations
    )


def _details(facts: RunFacts) -> str:
    """Returns what one looks up: remarks, lineage, settings, hosts, and the data itself."""
    report = facts.report
    remarks = "".join(f"<li>{html_text(remark)}</li>" for remark in report.remarks)
    steps = [
        cells(
            (
                step.stage,
                stage.digest[:12],
                (stage.parent or "")[:12],
                f"{stage.seconds:.0f} s",
                stage.created.replace("T", " "),
                step.data_fingerprint[:12],
                str(step.seed),
            )
        )
        for step, stage in zip(facts.lineage, report.stages, strict=False)
    ]
    columns = ("stage", "network", "made from", "duration", "finished", "data", "seed")
    settings = "".join(
        table(f"Settings of {step.stage}", ("setting", "value"), _settings(step.config))
        for step in facts.lineage
    )
    hosts = {stage.host.system + host_text(stage.host): stage.host for stage in report.stages}
    machines = "".join(
        paragraph(f"{host_text(host)}, {host.system}, Python {host.python}")
        + table("Libraries", ("library", "version"), map(cells, host.versions.items()))
        for host in hosts.values()
    )
    return (
        (f"<ul>{remarks}</ul>" if remarks else "")
        + folded("Lineage", table("How the shipped file came about", columns, steps))
        + folded("Settings", settings)
        + folded("Hosts", machines)
        + f"<p>Data of this page: {', '.join(_downloads(facts))}</p>"
    )


def _downloads(facts: RunFacts) -> list[str]:
    files = {
        REPORT_JSON: facts.report,
        INSIGHTS_JSON: facts.insights,
        LAYERS_JSON: facts.layers,
    }
    return [download(name, to_json(data)) for name, data in files.items() if data is not None]


def _settings(config: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Returns rows of settings with dotted names."""
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _settings(value, f"{prefix}{name}.")
        else:
            rows.append(cells((prefix + name, str(value))))
    return rows
