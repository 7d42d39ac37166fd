import io

from rich.console import Console

from compress.report.tables import html_table, markdown_table, terminal_table

COLUMNS, ROWS = ("layer", "ms"), (("a<b", "1.5"), ("conv", "20"))


def test_markdown_aligns_numbers_to_the_right() -> None:
    assert markdown_table(COLUMNS, ROWS) == (
        "| layer | ms |\n| --- | ---: |\n| a<b | 1.5 |\n| conv | 20 |"
    )


def test_html_escapes_its_cells() -> None:
    assert html_table(COLUMNS, ROWS) == (
        "<table><thead><tr><th>layer</th><th>ms</th></tr></thead><tbody>"
        "<tr><td>a&lt;b</td><td>1.5</td></tr><tr><td>conv</td><td>20</td></tr></tbody></table>"
    )


def test_the_terminal_aligns_numbers_to_the_right() -> None:
    table = terminal_table(COLUMNS, title="run [1]")
    for row in ROWS:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=40, markup=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert lines[0] == "run [1]"
    assert lines[-2:] == ["a<b    1.5", "conv    20"]
