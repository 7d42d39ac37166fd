"""Progress, messages, and warnings, on standard error so that results can be piped."""

import logging
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
        disable=not _shows_progress(),
    )
    with progress:
        yield from progress.track(items, total=total, description=printable(description))


def waiting(message: str) -> AbstractContextManager[object]:
    """Returns a context that shows a spinner, for work of unknown progress."""
    return console.status(Text(printable(message))) if _shows_progress() else nullcontext()


def _shows_progress() -> bool:
    """Returns whether bars and spinners are shown: not in log files, and not when silenced."""
    return console.is_terminal and logger.isEnabledFor(logging.INFO)


logger = logging.getLogger("compress")
"""All messages; `logging.getLogger("compress").setLevel("WARNING")` silences progress."""


class _ConsoleHandler(logging.Handler):
    """Prints messages on the console, each in its style."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a message."""
        console.print(Text(record.getMessage(), getattr(record, "style", "")))


if not logger.handlers:
    logger.addHandler(_ConsoleHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def say(message: str, *, style: str = "") -> None:
    """Logs a message, printed in one of rich's styles."""
    logger.info("%s", printable(message), extra={"style": style})


def warn(message: str) -> None:
    """Logs a warning."""
    logger.warning("%s", printable(message), extra={"style": "yellow"})


@cache
def warn_once(message: str) -> None:
    """Prints a warning that this process has not printed before."""
    warn(message)


def count_of(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 image`, `2 images`, `2 classes`."""
    ending = "es" if noun.endswith(("s", "x", "tch", "nch")) else "s"
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{ending}"
