"""Plots of pruning: widths, and the latency and accuracy of each iteration."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from compress.measure.results import StageReport
from compress.prune.result import PruneResult, Width
from compress.report.figure import figure_html


def pruning_figures(report: StageReport) -> list[str]:
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
