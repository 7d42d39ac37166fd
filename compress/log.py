"""Progress, messages, and warnings, on standard error so that results can be piped."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
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
"""For progress and messages; results (tables, paths) go to standard output. Markup is off, since
names may contain brackets."""


def track(items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
    """Yields the items while showing a progress bar."""
    progress = Progress(
        TextColumn("  {task.description:<28}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # no bars in log files
    )
    with progress:
        yield from progress.track(items, total=total, description=printable(description))


def waiting(message: str) -> AbstractContextManager[object]:
    """Returns a context that shows a spinner, for work of unknown progress."""
    return console.status(Text(printable(message))) if console.is_terminal else nullcontext()


def say(message: str, *, style: str = "") -> None:
    """Prints a message, in one of rich's styles."""
    console.print(Text(printable(message), style))


def warn(message: str) -> None:
    """Prints a warning."""
    say(message, style="yellow")


@cache
def warn_once(message: str) -> None:
    """Prints a warning that this process has not printed before."""
    warn(message)


def count_of(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 image`, `2 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
