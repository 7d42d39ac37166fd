"""Reports as self-contained HTML pages, with plots."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compress.measure.results import RunReport, StageReport
from compress.prune.result import PruneResult, Width
from compress.report.render import COLUMNS, conditions, run_rows
from compress.report.tables import html_table
from compress.report.text import html_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.ship { background: #eef6ee; padding: .8rem 1rem; border-left: 4px solid #2a7d2a }
figure { margin: 1.5rem 0 } svg { max-width: 100%; height: auto }
figcaption, .conditions { color: #555; font-size: .9rem }
"""


def run_html(report: RunReport, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns the page of a run; histories are `history.jsonl` of the stages that trained."""
    figures = [
        figure_html(
            _draw_trade,
            report,
            "Each stage's file: farther left is faster, higher is more accurate.",
        )
    ]
    if histories:
        caption = (
            "Validation accuracy after each epoch, in PyTorch: how training went, not what ships."
        )
        figures.append(figure_html(_draw_training, histories, caption))
    for stage in report.stages:
        figures += _pruning_figures(stage)
    remarks = "".join(f"<li>{html_text(remark)}</li>" for remark in report.remarks)
    return page(
        report.name,
        f"<p class='ship'><b>Ship <code>{html_text(report.ship)}</code></b><br>"
        f"{html_text(report.verdict)}</p>"
        f"{html_table(COLUMNS, run_rows(report))}"
        f"<p class='conditions'>{html_text(conditions(report.stages[-1]))}</p>"
        f"{''.join(figures)}<ul>{remarks}</ul>",
    )


def figures_html(stage: StageReport) -> str:
    """Returns a page with a stage's plots; empty if it has none."""
    figures = _pruning_figures(stage)
    if not figures:
        return ""
    below = f"<p class='conditions'>{html_text(conditions(stage))}</p>"
    return page(stage.stage, "".join(figures) + below)


def page(title: str, body: str) -> str:
    """Returns a self-contained HTML page."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html_text(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html_text(title)}</h1>{body}</body></html>\n"
    )


def figure_html(draw: Callable[[Axes, Any], None], content: Any, caption: str) -> str:
    """Returns an HTML figure with an inline SVG."""
    text = io.StringIO()
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # missing glyphs, degenerate axes
        figure = Figure(figsize=(8, 4), layout="constrained")
        draw(figure.subplots(), content)
        figure.savefig(text, format="svg")
    svg = text.getvalue()
    drawing = svg[svg.index("<svg") :]  # without the XML declaration
    return f"<figure>{drawing}<figcaption>{html_text(caption)}</figcaption></figure>"


def _pruning_figures(report: StageReport) -> list[str]:
    """Returns figures as HTML; none for a stage that pruned nothing."""
    result = report.result
    if not isinstance(result, PruneResult) or not result.iterations:
        return []
    return [
        figure_html(
            _draw_widths,
            result.widths,
            "Output channels of each layer before and after pruning; 0: layer removed.",
        ),
        figure_html(
            _draw_iterations,
            result,
            f"Each iteration: {result.precision} latency, predicted and measured, and validation "
            "top-1 (in PyTorch) as pruned, with re-estimated BatchNorm statistics, and fine-tuned.",
        ),
    ]


def _draw_trade(axes: Axes, report: RunReport) -> None:
    for stage in report.stages:
        low, high = stage.top1_ci95
        axes.errorbar(
            stage.latency_ms_p50,
            stage.top1,
            yerr=[[stage.top1 - low], [high - stage.top1]],
            fmt="o",
            capsize=3,
            label=f"{stage.stage}, {stage.size_bytes / 1e6:.2f} MB",
        )
    axes.set(xscale="log", xlabel="latency p50, ms", ylabel="top-1, % (95 % interval)")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()


def _draw_training(axes: Axes, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for stage, rows in histories.items():
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, [row["validation_top1"] for row in rows], marker=".", label=stage)
    axes.set(xlabel="epoch", ylabel="validation top-1, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


def _draw_widths(axes: Axes, widths: Sequence[Width]) -> None:
    places = range(len(widths))
    axes.bar(places, [width.before for width in widths], color="#ccd6e0", label="before")
    axes.bar(places, [width.after for width in widths], color="#2a6fb0", label="after")
    axes.set(ylabel="channels", yscale="log")
    layers = [width.layer for width in widths]
    axes.set_xticks(list(places), layers, rotation=90, fontsize=7, parse_math=False)
    axes.legend()


def _draw_iterations(axes: Axes, result: PruneResult) -> None:
    for field, label in (
        ("top1_trained", "fine-tuned"),
        ("top1_batchnorm", "BatchNorm re-estimated"),
        ("top1_raw", "as pruned"),
    ):
        axes.plot(
            [row.measured_ms for row in result.iterations],
            [getattr(row, field) for row in result.iterations],
            marker="o",
            label=label,
        )
    best = max(row.top1_trained for row in result.iterations)
    axes.scatter(
        [row.predicted_ms for row in result.iterations],
        [best] * len(result.iterations),
        marker="x",
        color="#888",
        label="latency predicted",
    )
    axes.axvline(result.unpruned_ms, color="#888", linewidth=0.8, label="unpruned")
    axes.set(xlabel=f"{result.precision} latency, ms", ylabel="validation top-1, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
