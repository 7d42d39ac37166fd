"""Names of anybody's choosing, as people shall read them: on a terminal, in Markdown and HTML."""

from __future__ import annotations

import html
import re

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line breaks, and what stands for the bytes of a name that is not UTF-8."""
_MARKDOWN = re.compile(r"[`*<|]|~~|&(?=#?\w+;)|\\(?=[^\w\s])|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
"""What is more than itself, where it is: `max_drop` and `[0.9, 1.1]` may stay as they are."""


def printable(text: str) -> str:
    r"""Returns text on one line, its unprintable characters written as in Python: `\n`, `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown_text(text: str) -> str:
    """Returns Markdown that reads as the text, in a table's cell too."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def html_text(text: str) -> str:
    """Returns HTML that reads as the text."""
    return html.escape(printable(text))


def readable_name(raw: bytes) -> str:
    r"""Returns a file's name as text: UTF-8, other bytes written as `\xff`."""
    return raw.decode("utf-8", "backslashreplace")
