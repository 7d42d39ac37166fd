"""Progress bars, on the terminal's error stream so that results can be piped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from compress.files import printable

T = TypeVar("T")


console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
"""Where progress and remarks go; tables and paths, the results, go to standard output. Brackets
are what they are: names may hold them."""


def track(items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
    """Yields the items under a progress bar."""
    progress = Progress(
        TextColumn("  {task.description:<28}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log gets lines, not bars
    )
    with progress:
        yield from progress.track(items, total=total, description=printable(description))


def waiting(message: str) -> AbstractContextManager[object]:
    """Returns a context that shows a spinner: for work of some seconds without countable parts."""
    return console.status(Text(printable(message))) if console.is_terminal else nullcontext()


def say(message: str, *, style: str = "") -> None:
    """Prints one line about what is going on, in a style of rich's."""
    console.print(Text(printable(message), style))


def warn(message: str) -> None:
    """Prints one line about what may be wrong."""
    say(message, style="yellow")
