"""Building blocks of the HTML pages: the document, sections, tables, and figures.

A page is one file without scripts: plots are SVG and CSS, images are data URIs, and its content
security policy forbids any request.
"""

import base64
from collections.abc import Iterable, Sequence
from importlib.resources import files

from compress.report.text import html_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, body: str) -> str:
    """Returns a self-contained HTML page; its body is HTML."""
    style = (files("compress.report") / "page.css").read_text(encoding="utf-8")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        # Without an icon of its own, a browser asks for one.
        "<link rel='icon' href='data:,'>"
        f"<title>{html_text(title)}</title><style>{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def heading(title: str) -> str:
    """Returns the page's heading."""
    return f"<h1>{html_text(title)}</h1>"


def section(name: str, title: str, *content: str) -> str:
    """Returns a section with a heading; `name` is its anchor, and content is HTML."""
    return (
        f"<section id='{name}' aria-labelledby='{name}-title'>"
        f"<h2 id='{name}-title'>{html_text(title)}</h2>{''.join(content)}</section>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph of plain text, of a CSS class."""
    return f"<p class='{kind}'>{html_text(text)}</p>"


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, wide: bool = False
) -> str:
    """Returns a table whose first column names its rows.

    Args:
        caption: plain text.
        columns: plain text.
        rows: HTML; see `cells` and `bars.py`.
        wide: whether it takes the page's width.
    """
    head = "".join(f"<th scope='col'>{html_text(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th scope='row' class='name'>{name}</th>"
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in others)
        + "</tr>"
        for name, *others in rows
    )
    title = html_text(caption)
    return (  # focusable, so that the keyboard can scroll it
        f"<div class='scroll' role='region' tabindex='0' aria-label='{title}'>"
        f"<table class='{'wide' if wide else ''}'><caption>{title}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def cells(row: Iterable[str]) -> list[str]:
    """Returns plain texts as HTML."""
    return [html_text(cell) for cell in row]


def folded(summary: str, *content: str) -> str:
    """Returns HTML that is folded away below a summary of plain text."""
    return f"<details><summary>{html_text(summary)}</summary>{''.join(content)}</details>"


def figure(caption: str, *content: str) -> str:
    """Returns a figure of HTML with a caption of plain text."""
    return f"<figure><figcaption>{html_text(caption)}</figcaption>{''.join(content)}</figure>"


def download(name: str, text: str) -> str:
    """Returns a link that saves a text as a file."""
    data = base64.b64encode(text.encode()).decode()
    return (
        f"<a download='{html_text(name)}' href='data:application/json;base64,{data}'>"
        f"{html_text(name)}</a>"
    )
