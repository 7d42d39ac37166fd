"""Output of the commands."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from compress.checkpoint import REPORT_HTML, REPORT_MD
from compress.doctor.examine import SEVERITIES, Diagnosis
from compress.files import printable
from compress.log import count_of
from compress.measure.benchmark import BenchmarkResult
from compress.measure.results import RunReport
from compress.report.benchmark import benchmark_tables, remarks
from compress.report.render import run_table

LOG_WIDTH = 120
"""Width in columns if there is no terminal."""
TEXT_WIDTH = 100
NAMES, NAME_WIDTH = 3, 60
"""Of a finding's places: how many are printed, and of how many characters."""


def print_report(report: RunReport, folder: Path) -> None:
    """Prints a run's table, remarks, and files."""
    print_table(run_table(report))
    click.echo()
    for remark in report.remarks:
        click.echo(f"- {printable(remark)}")
    click.echo(f"ship:   {folder / report.ship}\n        {report.verdict}")
    click.echo(f"report: {folder / REPORT_MD}, {folder / REPORT_HTML}")


def print_benchmark(result: BenchmarkResult) -> None:
    """Prints the tables of a comparison, and its remarks."""
    for table in benchmark_tables(result):
        print_table(table)
        click.echo()
    for remark in remarks(result):
        click.echo(f"- {printable(remark)}")


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Prints each finding in a paragraph, and their numbers."""
    for finding in diagnosis.findings:
        click.echo(f"{finding.severity}: {finding.check}: {printable(finding.what)}")
        if finding.where:
            click.echo(f"  where: {_shortened(finding.where)}")
        seen = f" ({', '.join(finding.upstream)})" if finding.upstream else ""
        for title, text in (("why: ", finding.why + seen), ("fix: ", finding.fix)):
            click.echo(
                textwrap.fill(
                    text, TEXT_WIDTH, initial_indent=f"  {title}  ", subsequent_indent=" " * 9
                )
            )
    counts = [
        count_of(diagnosis.count(severity), severity)
        for severity in SEVERITIES
        if diagnosis.count(severity)
    ]
    click.echo(f"{printable(diagnosis.file)}: {', '.join(counts) or 'nothing found'}")


def _shortened(names: Sequence[str]) -> str:
    """Returns the first names of a list and how many there are besides."""
    shown = [printable(name[:NAME_WIDTH]) for name in names[:NAMES]]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f", and {rest} more" if rest else "")


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
