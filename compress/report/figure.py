"""Plots for HTML pages."""

import io
import warnings
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compress.report.text import html_text


def figure_html(draw: Callable[[Axes, Any], None], content: Any, caption: str) -> str:
    """Returns an HTML figure with an inline SVG."""
    text = io.StringIO()
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # missing glyphs, degenerate axes
        figure = Figure(figsize=(8, 4), layout="constrained")
        draw(figure.subplots(), content)
        figure.savefig(text, format="svg")
    svg = text.getvalue()
    drawing = svg[svg.index("<svg") :]  # without the XML declaration
    return f"<figure>{drawing}<figcaption>{html_text(caption)}</figcaption></figure>"
