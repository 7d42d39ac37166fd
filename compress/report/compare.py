"""Several runs in one table and on one page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from compress.errors import CompressError
from compress.files import printable
from compress.measure.results import StageReport
from compress.report.charts import Series, axis_of, chart
from compress.report.check import Judged, check_same_images, conditions_of, top1_change
from compress.report.html import cells, document, figure, heading, table
from compress.report.render import conditions, short, size_text
from compress.report.tables import terminal_table
from compress.report.text import html_text

COLUMNS = (
    "run", "file", "params", "size", "top-1 %", "95 % CI", "p50 ms",
    "change", "95 % CI", "smaller", "faster",
)  # fmt: skip
EXPLANATION = (
    "The last four columns compare with the first run: points of top-1 with their interval, ratio "
    "of sizes, and ratio of latencies. They are empty where test images, or machine and settings, "
    "differ."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run's file, compared with the first run's."""

    name: str
    """The run."""
    data: str
    """Short name of the dataset; empty: unknown."""
    file: StageReport
    change_points: float | None
    """Points of test top-1 gained; None for the first run, or if the test images differ."""
    change_points_ci95: tuple[float, float] | None
    smaller: float | None
    """Ratio of sizes; None for the first run."""
    faster: float | None
    """Ratio of median latencies; None for the first run, or if machine or settings differ."""


def compare_runs(runs: Sequence[Judged]) -> tuple[Comparison, ...]:
    """Compares runs with the first."""
    return tuple(_compared(run, runs[0]) for run in runs)


def _compared(run: Judged, first: Judged) -> Comparison:
    file, reference = run.file, first.file
    change = interval = smaller = faster = None
    if run is not first:
        smaller = reference.size_bytes / file.size_bytes
        if _have_same_images(run, first):
            found = top1_change(reference, file)
            change, interval = found.points, found.points_ci95
        if conditions_of(file) == conditions_of(reference):
            faster = reference.latency_ms_p50 / file.latency_ms_p50
    return Comparison(
        name=run.name,
        data=run.data,
        file=file,
        change_points=change,
        change_points_ci95=interval,
        smaller=smaller,
        faster=faster,
    )


def compare_cells(run: Comparison) -> tuple[str, ...]:
    """Returns a row of the table."""
    file, interval = run.file, run.change_points_ci95
    return (
        printable(run.name),
        file.file,
        short(file.parameters),
        size_text(file.size_bytes),
        f"{file.top1:.2f}",
        f"{file.top1_ci95[0]:.1f}-{file.top1_ci95[1]:.1f}",
        f"{file.latency_ms_p50:.3f}",
        "" if run.change_points is None else f"{run.change_points:+.2f}",
        "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}",
        "" if run.smaller is None else f"{run.smaller:.2f}x",
        "" if run.faster is None else f"{run.faster:.2f}x",
    )


def _have_same_images(run: Judged, first: Judged) -> bool:
    try:
        check_same_images(run, first)
    except CompressError:
        return False
    return True


def compare_table(runs: Sequence[Comparison]) -> Table:
    """Returns the table for the terminal."""
    shown = terminal_table(COLUMNS, padding=1)
    for run in runs:
        shown.add_row(*compare_cells(run))
    return shown


def compare_html(runs: Sequence[Comparison]) -> str:
    """Returns the page."""
    title = f"Comparison of {len(runs)} runs"
    measured = "".join(
        f"<li>{html_text(f'{run.name}, {run.data}: {conditions(run.file)}')}</li>" for run in runs
    )
    files = Series(
        name="file",
        color=1,
        points=[(run.file.latency_ms_p50, run.file.top1) for run in runs],
        labels=[printable(run.name) for run in runs],
        intervals=[run.file.top1_ci95 for run in runs],
    )
    drawn = chart(
        [files],
        axis_of([across for across, _ in files.points], title="latency p50, ms", log=True),
        axis_of(
            [end for ends in files.intervals for end in ends], title="top-1, % (95 % interval)"
        ),
        summary="Accuracy against latency of each run's file; the table has the numbers.",
    )
    caption = "The file of each run: farther left is faster, higher is more accurate."
    numbers = table(EXPLANATION, COLUMNS, [cells(compare_cells(run)) for run in runs])
    body = f"{heading(title)}{numbers}{figure(caption, drawn)}<ul class='note'>{measured}</ul>"
    return document(title, f"<main>{body}</main>")
