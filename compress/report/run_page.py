"""The page of a run, rendered from its JSON files: one section a function, in the page's order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compress.checkpoint import REPORT_JSON, Step
from compress.files import to_json
from compress.insights.results import INSIGHTS_JSON, Insights
from compress.measure.results import RunReport
from compress.prune.result import PruneResult
from compress.report.html import (
    cells,
    document,
    download,
    folded,
    heading,
    paragraph,
    section,
    table,
)
from compress.report.insights import insight_sections
from compress.report.layers import LAYERS_JSON, LayersReport, layers_html
from compress.report.pruning import cuts_html, widths_html
from compress.report.render import (
    USE_COLUMNS,
    conditions,
    host_text,
    size_text,
    speedup_text,
    use_rows,
)
from compress.report.text import html_text
from compress.report.tradeoff import stages_html, tradeoff_html
from compress.report.training import training_html


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """All that the page shows."""

    report: RunReport
    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows of `history.jsonl` of the stages that trained."""
    steps: Mapping[str, Step] = field(default_factory=dict)
    """How each stage's checkpoint was made."""
    insights: Insights | None = None
    """`insights.json` of the run."""
    layers: LayersReport | None = None
    """`sensitivity.json` of a stage."""


def run_html(facts: RunFacts) -> str:
    """Returns the page of a run."""
    report = facts.report
    sections = [
        ("stages", "Stage by stage", stages_html(report)),
        ("tradeoff", "Accuracy against latency", tradeoff_html(report)),
        ("training", "Training", training_html(facts.histories)),
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
        for stage in report.stages
        if (step := facts.steps.get(stage.stage))
    ]
    columns = ("stage", "network", "made from", "duration", "finished", "data", "seed")
    settings = "".join(
        table(f"Settings of {step.stage}", ("setting", "value"), _settings(step.config))
        for step in facts.steps.values()
    )
    hosts = {stage.host.system + host_text(stage.host): stage.host for stage in report.stages}
    machines = "".join(
        paragraph(f"{host_text(host)}, {host.system}, Python {host.python}")
        + table("Libraries", ("library", "version"), map(cells, host.versions.items()))
        for host in hosts.values()
    )
    return (
        (f"<ul>{remarks}</ul>" if remarks else "")
        + folded(
            "Latency, throughput, and memory",
            table("Each stage's file in ONNX Runtime", USE_COLUMNS, map(cells, use_rows(report))),
        )
        + folded("Lineage", table("How each stage came about", columns, steps))
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
