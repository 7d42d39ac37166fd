"""Results files of the benches: one row a variant, the newest one; and pages made from them."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import TypeAdapter

from compress.files import atomic_write, write_json


class Row(Protocol):
    """What every row says, beside its figures."""

    @property
    def variant(self) -> str:
        """Names the row."""

    @property
    def command(self) -> str:
        """That made it."""

    @property
    def date(self) -> str:
        """In ISO format."""


class Results(Protocol):
    """Rows and, in the other fields, what all of them share."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def rows(self) -> Sequence[Row]:
        """One for each variant."""


T = TypeVar("T")
R = TypeVar("R", bound=Results)


def read_results(kind: type[T], path: Path) -> T:
    """Reads a results file."""
    return TypeAdapter(kind).validate_json(path.read_bytes())


def add_to_results(results: R, path: Path, page: Callable[[R], str]) -> None:
    """Puts rows into a results file, in the place of older ones of the same variants.

    Older rows that were made with other settings go.

    Args:
        results: the new rows.
        path: of the file; its page lies beside it.
        page: from results to Markdown.
    """
    rows = {}
    if path.is_file():
        old = read_results(type(results), path)
        if dataclasses.replace(old, rows=()) == dataclasses.replace(results, rows=()):
            rows = {row.variant: row for row in old.rows}
    rows |= {row.variant: row for row in results.rows}
    merged = dataclasses.replace(results, rows=tuple(rows.values()))
    write_json(path, merged)
    with atomic_write(path.with_suffix(".md")) as partial:
        partial.write_text(page(merged), encoding="utf-8")


def spread_text(values: Sequence[float]) -> str:
    """Returns mean and standard deviation, with two digits."""
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def commands_text(rows: Iterable[Row]) -> str:
    """Returns the commands that made the rows, with their dates."""
    return "; ".join(sorted({f"`{row.command}`, {row.date[:10]}" for row in rows}))
