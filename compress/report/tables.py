"""Tables for the terminal and Markdown."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from compress.files import printable

Rows = Sequence[Sequence[str]]


def terminal_table(columns: Sequence[str], *, title: str | None = None, padding: int = 1) -> Table:
    """Returns an empty table for the terminal; all columns but the first are right-aligned."""
    table = Table(
        title=title and printable(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, padding, 0, 0),
        show_edge=False,
    )
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def markdown_table(columns: Sequence[str], rows: Rows) -> str:
    """Returns a Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
