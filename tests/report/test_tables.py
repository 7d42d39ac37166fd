import io
from pathlib import Path

from rich.console import Console

from compress.report.html import cells, table
from compress.report.render import run_rows, run_table
from compress.report.tables import markdown_table, terminal_table
from compress.run.lookup import read_run_report

COLUMNS, ROWS = ("layer", "ms"), (("a<b", "1.5"), ("conv", "20"))


def test_markdown_aligns_numbers_to_the_right() -> None:
    assert markdown_table(COLUMNS, ROWS) == (
        "| layer | ms |\n| --- | ---: |\n| a<b | 1.5 |\n| conv | 20 |"
    )


def test_html_escapes_its_cells_and_names_rows_and_columns() -> None:
    found = table("a & b", COLUMNS, map(cells, ROWS))
    assert "<caption>a &amp; b</caption>" in found
    assert "<th scope='col'>layer</th><th scope='col'>ms</th>" in found
    assert "<tr><th scope='row' class='name'>a&lt;b</th><td>1.5</td></tr>" in found


def test_the_terminal_aligns_numbers_to_the_right() -> None:
    table = terminal_table(COLUMNS, title="run [1]")
    for row in ROWS:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=40, markup=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert lines[0] == "run [1]"
    assert lines[-2:] == ["a<b    1.5", "conv    20"]


def test_the_table_of_a_run_fits_a_terminal_of_80_columns() -> None:
    report = read_run_report(Path("bench/results/resnet18-fashion-mnist.json"))
    text = io.StringIO()
    Console(file=text, width=80).print(run_table(report))
    lines = text.getvalue().splitlines()
    for row, line in zip(run_rows(report), lines[-len(report.stages) :], strict=True):
        assert " ".join(line.split()) == " ".join(cell for cell in row if cell)
