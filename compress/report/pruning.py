"""Plots of what pruning did: widths, and each cut's latency and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from compress.measure.results import StageReport
from compress.report.figure import figure_html


def pruning_figures(report: StageReport) -> list[str]:
    """Returns figures as HTML; none of a stage that cut nothing."""
    details = report.details
    if not details.get("iterations"):
        return []
    kind = details["precision"]
    return [
        figure_html(
            _draw_widths,
            details["widths"],
            "Output channels of each layer before and after pruning, in order; 0: left out.",
        ),
        figure_html(
            _draw_steps,
            details,
            f"Each cut: {kind} latency as predicted and as measured, and validation top-1 (in "
            "PyTorch) right after the cut, with new BatchNorm statistics, and trained.",
        ),
    ]


def _draw_widths(axes: Axes, widths: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(widths))
    axes.bar(places, [width["before"] for width in widths], color="#ccd6e0", label="before")
    axes.bar(places, [width["after"] for width in widths], color="#2a6fb0", label="after")
    axes.set(ylabel="channels", yscale="log")
    layers = [width["layer"] for width in widths]
    axes.set_xticks(list(places), layers, rotation=90, fontsize=7, parse_math=False)
    axes.legend()


def _draw_steps(axes: Axes, details: Mapping[str, Any]) -> None:
    steps = details["iterations"]
    for field, label in (
        ("top1_trained", "trained"),
        ("top1_batchnorm", "new BatchNorm statistics"),
        ("top1_raw", "as cut"),
    ):
        axes.plot(
            [step["measured_ms"] for step in steps],
            [step[field] for step in steps],
            marker="o",
            label=label,
        )
    best = max(step["top1_trained"] for step in steps)
    axes.scatter(
        [step["predicted_ms"] for step in steps],
        [best] * len(steps),
        marker="x",
        color="#888",
        label="latency predicted",
    )
    axes.axvline(details["unpruned_ms"], color="#888", linewidth=0.8, label="unpruned")
    axes.set(xlabel=f"{details['precision']} latency, ms", ylabel="validation top-1, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
