"""What a check is and what it finds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from compress.doctor.model import Model

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a check found in a file."""

    what: str
    where: tuple[str, ...] = ()
    """Names of nodes or tensors; empty if it is about the whole file."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Looks for one kind of fault."""

    name: str
    severity: Severity
    """`error`: wrong results; `warning`: slower or larger than need be; `note`: good to know."""
    subject: str
    """What it looks for, for the table of checks."""
    why: str
    upstream: tuple[str, ...]
    """Where it is discussed, as `owner/repository#number` on GitHub."""
    fix: str
    find: Callable[[Model], Iterable[Fault]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault in a file, explained."""

    check: str
    severity: Severity
    what: str
    where: tuple[str, ...]
    why: str
    upstream: tuple[str, ...]
    fix: str
