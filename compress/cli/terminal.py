"""Output of the commands."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from compress.checkpoint import REPORT_HTML, REPORT_MD
from compress.files import printable
from compress.measure.results import RunReport
from compress.report.render import run_table

LOG_WIDTH = 120
"""Width in columns if there is no terminal."""


def print_report(report: RunReport, folder: Path) -> None:
    """Prints a run's table, remarks, and files."""
    print_table(run_table(report))
    click.echo()
    for remark in report.remarks:
        click.echo(f"- {printable(remark)}")
    click.echo(f"ship:   {folder / report.ship}\n        {report.verdict}")
    click.echo(f"report: {folder / REPORT_MD}, {folder / REPORT_HTML}")


def print_table(table: object) -> None:
    """Prints a table; as plain text of a fixed width where there is no terminal."""
    console = Console(highlight=False, markup=False, emoji=False)  # names may contain brackets
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(table)


def print_list(rows: Sequence[tuple[str, str]]) -> None:
    """Prints names and descriptions in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, description in rows:
        click.echo(f"{name:<{width}}  {description}")
