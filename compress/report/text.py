"""Arbitrary text, escaped for Markdown and HTML."""

import html
import re

from compress.files import printable

_MARKDOWN = re.compile(r"[`*<|]|~~|&(?=#?\w+;)|\\(?=[^\w\s])|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
"""Characters that are Markdown syntax in context; `max_drop` and `[0.9, 1.1]` need no escape."""


def markdown_text(text: str) -> str:
    """Returns Markdown that renders as the text, in table cells too."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def html_text(text: str) -> str:
    """Returns HTML that renders as the text."""
    return html.escape(printable(text))
