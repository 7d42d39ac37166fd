"""The int8 sensitivity of each layer: data, table, and page."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from compress.cache import Measurements
from compress.files import printable, write_json, write_text
from compress.host import Host
from compress.log import count_of
from compress.measure.results import read_typed
from compress.quantize.sensitivity import Sensitivity
from compress.report.charts import Series, axis_of, chart
from compress.report.html import cells, document, figure, heading, paragraph, table
from compress.report.render import measured_text
from compress.report.tables import terminal_table

LAYERS_JSON, LAYERS_HTML = "sensitivity.json", "sensitivity.html"
COLUMNS = ("layer", "loss alone", "top-1 alone", "loss regained", "top-1 regained", "ms gained")
EXPLANATION = (
    "Alone: the change when only this layer is int8. Regained: the change back when all layers but "
    "this one are int8. ms gained: float minus int8 latency of the layer and its activation."
)
LABELED = 5
"""Layers that the chart names: those that cost the most."""
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
    title = f"Sensitivity of {count_of(len(report.rows), 'layer')}"
    body = f"<main>{heading(title)}{layers_html(report)}</main>"
    write_text(folder / LAYERS_HTML, document(title, body))


def read_layers_report(folder: Path) -> LayersReport | None:
    """Reads `sensitivity.json`; None if the layers were not measured.

    Raises:
        CompressError: the file is damaged.
    """
    remedy = "run `compress sensitivity` again"
    return read_typed(LayersReport, folder / LAYERS_JSON, remedy=remedy)


def layers_html(report: LayersReport) -> str:
    """Returns the chart and the table of all layers."""
    measured = "; ".join(map(measured_text, report.measurements))
    below = (
        f"{report.n_images} validation images, simulated in PyTorch; {report.calibration_images} "
        f"calibration images; latency in ONNX Runtime, {count_of(report.threads, 'thread')}, batch "
        f"1, {report.host.cpu}: {measured}"
    )
    rows = sorted(report.rows, key=lambda row: -row.loss_alone)
    costliest = Series(
        name="layer",
        color=1,
        points=[(row.ms_gained, row.loss_alone) for row in rows],
        labels=[printable(row.layer) for row in rows[:LABELED]],
    )
    drawn = chart(
        [costliest],
        axis_of([0, *(row.ms_gained for row in rows)], title="ms gained by int8"),
        axis_of([0, *(row.loss_alone for row in rows)], title="loss added by this layer in int8"),
        summary="Loss added by each layer and the time that it gains; the table has the numbers.",
    )
    numbers = table(EXPLANATION, COLUMNS, [cells(_cells(row)) for row in report.rows])
    return figure(CAPTION, drawn) + numbers + paragraph(below, "note")


def _cells(row: Sensitivity) -> tuple[str, ...]:
    return (
        printable(row.layer),
        f"{row.loss_alone:+.4f}",
        f"{row.top1_alone:+.2f}",
        f"{row.loss_regained:+.4f}",
        f"{row.top1_regained:+.2f}",
        f"{row.ms_gained:+.4f}",
    )
