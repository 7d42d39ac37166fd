"""Bars and charts as HTML, CSS, and SVG that follow the page's colors and width."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compress.report.text import html_text

Point = tuple[float, float]
FEWEST_TICKS = 3
MARGIN = 0.06
"""Of an axis, as a fraction of its data's range."""

EDGE = 15
"""Percent of the width near the edges, where labels move inward."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps values to percent of a length."""

    title: str = ""
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Returns where a value lies, in percent; values outside lie on the edge."""
        low, high, at = (map(math.log, (self.low, self.high, max(value, self.low)))
                         if self.log else (self.low, self.high, value))  # fmt: skip
        return 100 * min(max((at - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Returns round numbers within the axis: multiples of 1, 2, or 5 times a power of ten."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)


def axis_of(values: Iterable[float], *, title: str = "", log: bool = False) -> Axis:
    """Returns an axis for values, with margins."""
    values = list(values)
    low, high = min(values), max(values)
    if log:
        factor = max((high / low) ** MARGIN, 1.1)
        return Axis(title=title, low=low / factor, high=high * factor, log=True)
    margin = MARGIN * (high - low) or 0.5
    return Axis(title=title, low=low - margin, high=high + margin)


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.ceil(math.log10(high - low))
    for divisor in itertools.cycle((2, 2.5, 2)):  # 5, 2, 1, 0.5, ...
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first + 1 >= FEWEST_TICKS:
            return [round(number * step, 12) for number in range(first, last + 1)]
        step /= divisor
    raise AssertionError


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [round(tick, 12) for tick in ticks if low <= tick <= high]
        if len(inside) >= FEWEST_TICKS:
            return inside
    return _ticks(low, high)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind."""

    name: str
    color: int
    """Number of a color in page.css."""
    points: Sequence[Point]
    labels: Sequence[str] = ()
    """Next to the points."""
    intervals: Sequence[Point] = ()
    """Lowest and highest y of each point."""
    line: bool = False
    """Connects the points."""
    dashed: bool = False
    dots: bool = True
    hollow: bool = False


def chart(series: Sequence[Series], x: Axis, y: Axis, *, summary: str, square: bool = False) -> str:
    """Returns a chart with a key; the summary tells those who cannot see it what it shows."""
    grid = "".join(f"M0 {_y(y, tick)}H1000" for tick in y.ticks())
    grid += "".join(f"M{_x(x, tick)} 0V1000" for tick in x.ticks())
    paths = [_path("grid", grid), *(path for one in series for path in _paths(one, x, y))]
    texts = [
        *(_text("y", f"bottom:{y.place(tick):.2f}%", f"{tick:g}") for tick in y.ticks()),
        *(_text("x", f"left:{x.place(tick):.2f}%", f"{tick:g}") for tick in x.ticks()),
        *(text for one in series for text in _labels(one, x, y)),
        f"<span class='ytitle'>{html_text(y.title)}</span>",
        f"<span class='xtitle'>{html_text(x.title)}</span>",
    ]
    return (
        f"{_key(series)}<div class='chart{' square' if square else ''}' role='img' "
        f"aria-label='{html_text(summary)}'>"
        "<svg viewBox='0 0 1000 1000' preserveAspectRatio='none' aria-hidden='true'>"
        f"{''.join(paths)}</svg>{''.join(texts)}</div>"
    )


def _x(axis: Axis, value: float) -> str:
    return f"{10 * axis.place(value):.4g}"


def _y(axis: Axis, value: float) -> str:
    return f"{1000 - 10 * axis.place(value):.4g}"


def _path(kind: str, steps: str) -> str:
    return f"<path class='{kind}' d='{steps}'/>"


def _text(kind: str, place: str, text: str) -> str:
    return f"<span class='{kind}' style='{place}'>{html_text(text)}</span>"


def _paths(series: Series, x: Axis, y: Axis) -> list[str]:
    color = f"s{series.color}"
    places = [(_x(x, across), _y(y, up)) for across, up in series.points]
    # A line of no length with round ends is a dot that does not stretch.
    dots = "".join(f"M{across} {up}h0" for across, up in places)
    paths = [
        _path(color, f"M{across} {_y(y, low)}V{_y(y, high)}")
        for (across, _), (low, high) in zip(places, series.intervals, strict=False)
    ]
    if series.line and len(places) > 1:
        steps = "M" + "L".join(f"{across} {up}" for across, up in places)
        paths.append(_path(f"line {color}{' dashed' if series.dashed else ''}", steps))
    if series.dots or len(places) == 1:
        paths.append(_path(f"dots {color}", dots))
    if series.hollow:
        paths.append(_path("hollow", dots))
    return paths


def _labels(series: Series, x: Axis, y: Axis) -> list[str]:
    """Returns labels from left to right, by turns above and below, so that they do not overlap."""
    texts = []
    for number, ((across, up), label) in enumerate(
        sorted(zip(series.points, series.labels, strict=False))
    ):
        place = x.place(across)
        edge = " start" if place < EDGE else " end" if place > 100 - EDGE else ""
        kind = f"label s{series.color}{edge}{' below' if number % 2 else ''}"
        texts.append(_text(kind, f"left:{place:.2f}%;bottom:{y.place(up):.2f}%", label))
    return texts


def _key(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    names = "".join(
        f"<span class='s{one.color}{'' if one.line else ' point'}{' dashed' if one.dashed else ''}'"
        f">{html_text(one.name)}</span>"
        for one in series
    )
    return f"<div class='key' aria-hidden='true'>{names}</div>"


def bar(axis: Axis, value: float, *, before: float | None = None, text: str = "") -> str:
    """Returns a table cell with a text and a bar from the axis' low end to a value.

    `before` is drawn behind it.
    """
    bars = "" if before is None else _bar("old", 0, axis.place(before))
    return _bar_cell(text, bars + _bar("new", 0, axis.place(value)))


def change_bar(axis: Axis, start: float, end: float, *, text: str, higher_is_better: bool) -> str:
    """Returns a table cell with a text and a bar from one value to another."""
    places = axis.place(start), axis.place(end)
    kind = "better" if (end > start) == higher_is_better or start == end else "worse"
    return _bar_cell(text, _bar(kind, min(places), max(places)))


def _bar_cell(text: str, bars: str) -> str:
    return f"<td class='bar'>{text}<span class='track' aria-hidden='true'>{bars}</span></td>"


def _bar(kind: str, start: float, end: float) -> str:
    return f"<i class='{kind}' style='left:{start:.2f}%;width:{end - start:.2f}%'></i>"
