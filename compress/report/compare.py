"""Several runs in one table and on one page."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from rich.table import Table

from compress.errors import CompressError
from compress.files import printable
from compress.report.check import Judged, check_same_images, conditions_of, drop_ci95
from compress.report.html import figure_html, page
from compress.report.render import conditions, short, size_text
from compress.report.tables import html_table, terminal_table
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
    table = terminal_table(COLUMNS, padding=1)
    for row in compare_rows(runs):
        table.add_row(*row)
    return table


def compare_html(runs: Sequence[Judged]) -> str:
    """Returns the page."""
    measured = "".join(
        f"<li>{html_text(f'{run.name}, {run.data}: {conditions(run.file)}')}</li>" for run in runs
    )
    caption = "The file of each run: farther left is faster, higher is more accurate."
    return page(
        f"Comparison of {len(runs)} runs",
        f"{html_table(COLUMNS, compare_rows(runs))}<p class='conditions'>{EXPLANATION}</p>"
        f"{figure_html(_draw, runs, caption)}<ul class='conditions'>{measured}</ul>",
    )


def _draw(axes: Axes, runs: Sequence[Judged]) -> None:
    for run in runs:
        low, high = run.file.top1_ci95
        axes.errorbar(
            run.file.latency_ms_p50,
            run.file.top1,
            yerr=[[run.file.top1 - low], [high - run.file.top1]],
            fmt="o",
            capsize=3,
            label=f"{printable(run.name)}, {size_text(run.file.size_bytes)}",
        )
    axes.set(xscale="log", xlabel="latency p50, ms", ylabel="top-1, % (95 % interval)")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
