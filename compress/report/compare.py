"""Several runs in one table and on one page."""

from collections.abc import Sequence

from rich.table import Table

from compress.errors import CompressError
from compress.files import printable
from compress.report.charts import Series, axis_of, chart
from compress.report.check import Judged, check_same_images, conditions_of, drop_ci95
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


def compare_rows(runs: Sequence[Judged]) -> list[tuple[str, ...]]:
    """Returns the cells of the table, a row for each run; the first is the reference."""
    return [_row(run, runs[0]) for run in runs]


def _row(run: Judged, first: Judged) -> tuple[str, ...]:
    file, reference = run.file, first.file
    change = interval = smaller = faster = ""
    if run is not first:
        smaller = f"{reference.size_bytes / file.size_bytes:.2f}x"
        if _have_same_images(run, first):
            low, high = drop_ci95(reference, file)
            change, interval = f"{file.top1 - reference.top1:+.2f}", f"{-high:.1f} to {-low:.1f}"
        if conditions_of(file) == conditions_of(reference):
            faster = f"{reference.latency_ms_p50 / file.latency_ms_p50:.2f}x"
    return (
        printable(run.name),
        file.file,
        short(file.parameters),
        size_text(file.size_bytes),
        f"{file.top1:.2f}",
        f"{file.top1_ci95[0]:.1f}-{file.top1_ci95[1]:.1f}",
        f"{file.latency_ms_p50:.3f}",
        *(change, interval, smaller, faster),
    )


def _have_same_images(run: Judged, first: Judged) -> bool:
    try:
        check_same_images(run, first)
    except CompressError:
        return False
    return True


def compare_table(runs: Sequence[Judged]) -> Table:
    """Returns the table for the terminal."""
    shown = terminal_table(COLUMNS, padding=1)
    for row in compare_rows(runs):
        shown.add_row(*row)
    return shown


def compare_html(runs: Sequence[Judged]) -> str:
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
    numbers = table(EXPLANATION, COLUMNS, map(cells, compare_rows(runs)))
    body = f"{heading(title)}{numbers}{figure(caption, drawn)}<ul class='note'>{measured}</ul>"
    return document(title, f"<main>{body}</main>")
