"""Names of anybody's choosing, as people shall read them in Markdown and HTML."""

from __future__ import annotations

import html
import re

from compress.files import printable

_MARKDOWN = re.compile(r"[`*<|]|~~|&(?=#?\w+;)|\\(?=[^\w\s])|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
"""What is more than itself, where it is: `max_drop` and `[0.9, 1.1]` may stay as they are."""


def markdown_text(text: str) -> str:
    """Returns Markdown that reads as the text, in a table's cell too."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def html_text(text: str) -> str:
    """Returns HTML that reads as the text."""
    return html.escape(printable(text))
