"""Events that a training run emits, and how they are printed."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from compress.log import say, track, waiting, warn
from compress.train.diagnosis import Finding
from compress.train.state import Epoch

T = TypeVar("T")

MAX_LINES = 20
"""Maximum number of epoch lines per training run; history.jsonl has them all."""


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """An epoch was trained, scored, and saved."""

    title: str
    epochs: int
    row: Epoch


Event = str | EpochEnd | Finding
"""A text is a remark about the run, such as resuming or stopping early."""
OnEvent = Callable[[Event], None]
"""Receives the events of a training run. With any other than `print_event` nothing is printed and
no progress bar is drawn."""


_LISTENERS: ContextVar[tuple[OnEvent, ...]] = ContextVar("_LISTENERS", default=())


@contextmanager
def listening(listener: OnEvent) -> Iterator[None]:
    """Hands the events that are printed to a listener too, while the context is open."""
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


def print_event(event: Event) -> None:
    """Prints an event to standard error; long runs print only some epochs."""
    for listener in _LISTENERS.get():
        listener(event)
    match event:
        case str():
            say(f"  {event}")
        case EpochEnd(row=row):
            if row.epoch % math.ceil(event.epochs / MAX_LINES) == 0 or row.epoch == event.epochs:
                say(
                    f"  {event.title} epoch {row.epoch}/{event.epochs}: loss {row.loss:.3f}, "
                    f"validation {row.validation_top1:.2f} %, "
                    f"{row.images_per_second:.0f} images/s ({row.precision})"
                )
        case Finding():
            warn(f"  {event}")


def progress_bar(items: Iterable[T], title: str, *, total: int, on_event: OnEvent) -> Iterable[T]:
    """Yields the items, under a progress bar if events are printed to the terminal."""
    return track(items, title, total=total) if on_event is print_event else items


def spinner(message: str, on_event: OnEvent) -> AbstractContextManager[object]:
    """Shows a spinner if events are printed to the terminal."""
    return waiting(message) if on_event is print_event else nullcontext()
