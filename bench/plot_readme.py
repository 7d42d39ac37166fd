"""Draws the README's plot: size, latency, and top-1 of each stage of the main run.

    python -m bench.plot_readme

Reads bench/results/resnet18-fashion-mnist.json and writes docs/resnet18-fashion-mnist.svg.
"""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compress.files import atomic_write
from compress.measure.results import RunReport
from compress.report.render import size_text
from compress.run.lookup import read_run_report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/resnet18-fashion-mnist.json"
PLOT = ROOT / "docs/resnet18-fashion-mnist.svg"
BLUE, GRAY = "#2a6fb0", "#9aa7b5"
ROOM = 6
"""Factor by which logarithmic axes extend past the longest bar, for its label."""


def draw(report: RunReport, path: Path) -> None:
    """Writes the plot of a run as an SVG file."""
    stages = report.stages
    # Text stays text, and identifiers in the file stay the same.
    style = rc_context({"svg.fonttype": "none", "svg.hashsalt": "compress"})
    with style, atomic_write(path) as partial:
        figure = Figure(figsize=(9, 2.3), layout="constrained")
        size, latency, top1 = figure.subplots(1, 3, sharey=True)
        _bars(
            size,
            [stage.size_bytes for stage in stages],
            [size_text(stage.size_bytes) for stage in stages],
        )
        _bars(
            latency,
            [stage.latency_ms_p50 for stage in stages],
            [f"{stage.latency_ms_p50:.3f} ms" for stage in stages],
        )
        _intervals(top1, report)
        size.set(
            title="size (log scale)",
            yticks=range(len(stages)),
            yticklabels=[stage.stage for stage in stages],
        )
        latency.set(title="latency p50 (log scale)")
        top1.set(title="top-1 with 95 % interval")
        size.invert_yaxis()
        figure.savefig(partial, format="svg", metadata={"Date": None})


def _bars(axes: Axes, values: list[float], labels: list[str]) -> None:
    colors = [GRAY, *[BLUE] * (len(values) - 1)]
    axes.bar_label(axes.barh(range(len(values)), values, color=colors), labels, padding=3)
    axes.set(xscale="log", xlim=(min(values) / 3, ROOM * max(values)), xticks=[])
    axes.minorticks_off()
    _plain(axes)


def _intervals(axes: Axes, report: RunReport) -> None:
    for row, stage in enumerate(report.stages):
        low, high = stage.top1_ci95
        color = BLUE if row else GRAY
        axes.plot([low, high], [row, row], color=color, linewidth=2)
        axes.plot(stage.top1, row, "o", color=color)
        axes.annotate(
            f"{stage.top1:.2f} %", (high, row), (4, 0), textcoords="offset points", va="center"
        )
    axes.margins(x=0.4)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False)


if __name__ == "__main__":
    draw(read_run_report(RESULTS), PLOT)
