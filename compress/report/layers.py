"""The int8 sensitivity of each layer: data, table, and page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from rich.table import Table

from compress.cache import Measurements
from compress.files import printable, write_json, write_text
from compress.host import Host
from compress.log import count_of
from compress.quantize.sensitivity import Sensitivity
from compress.report.html import figure_html, page
from compress.report.render import measured_text
from compress.report.tables import html_table, terminal_table
from compress.report.text import html_text

LAYERS_JSON, LAYERS_HTML = "sensitivity.json", "sensitivity.html"
COLUMNS = ("layer", "loss alone", "top-1 alone", "loss regained", "top-1 regained", "ms gained")
EXPLANATION = (
    "Alone: the change when only this layer is int8. Regained: the change back when all layers but "
    "this one are int8. ms gained: float minus int8 latency of the layer and its activation."
)
CAPTION = "Layers by accuracy and time; int8 pays off least in the upper left."


@dataclass(frozen=True, kw_only=True)
class LayersReport:
    """The data written by `compress sensitivity`."""

    checkpoint: str
    """Digest of the float checkpoint."""
    n_images: int
    """Validation images scored, in PyTorch's simulation."""
    calibration_images: int
    threads: int
    host: Host
    rows: tuple[Sensitivity, ...]
    measurements: tuple[Measurements, ...]
    """Timings behind `ms gained`."""


def layers_table(report: LayersReport) -> Table:
    """Returns the table for the terminal."""
    table = terminal_table(COLUMNS)
    for row in report.rows:
        table.add_row(*_cells(row))
    return table


def write_layers_report(folder: Path, report: LayersReport) -> None:
    """Writes `sensitivity.json` and `sensitivity.html`."""
    write_json(folder / LAYERS_JSON, report)
    measured = "; ".join(map(measured_text, report.measurements))
    below = (
        f"{report.n_images} validation images, simulated in PyTorch; {report.calibration_images} "
        f"calibration images; latency in ONNX Runtime, {count_of(report.threads, 'thread')}, batch "
        f"1, {report.host.cpu}: {measured}"
    )
    body = (
        figure_html(_draw, report.rows, CAPTION)
        + f"<p>{EXPLANATION}</p>{html_table(COLUMNS, [_cells(row) for row in report.rows])}"
        + f"<p class='conditions'>{html_text(below)}</p>"
    )
    write_text(
        folder / LAYERS_HTML, page(f"Sensitivity of {count_of(len(report.rows), 'layer')}", body)
    )


def _cells(row: Sensitivity) -> tuple[str, ...]:
    return (
        printable(row.layer),
        f"{row.loss_alone:+.4f}",
        f"{row.top1_alone:+.2f}",
        f"{row.loss_regained:+.4f}",
        f"{row.top1_regained:+.2f}",
        f"{row.ms_gained:+.4f}",
    )


def _draw(axes: Axes, rows: Sequence[Sensitivity]) -> None:
    axes.scatter([row.ms_gained for row in rows], [row.loss_alone for row in rows], s=18)
    for row in sorted(rows, key=lambda row: -row.loss_alone)[:5]:
        place = (row.ms_gained, row.loss_alone)
        axes.annotate(
            row.layer,
            place,
            fontsize=8,
            xytext=(4, 4),
            textcoords="offset points",
            parse_math=False,  # a name may contain dollar signs
        )
    axes.axvline(0, color="#888", linewidth=0.8)
    axes.axhline(0, color="#888", linewidth=0.8)
    axes.set(xlabel="ms gained by int8", ylabel="loss added by this layer alone in int8")
    axes.grid(visible=True, alpha=0.3)
