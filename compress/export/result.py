"""Results of the export stage."""

from collections.abc import Mapping
from dataclasses import dataclass

from compress.export.parity import Parity
from compress.measure.statistics import PairedDifference


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The exported files, and which one to ship."""

    files: tuple[str, ...]
    parity: Mapping[str, Parity]
    """Agreement with torch, by file name."""
    change: PairedDifference | None = None
    """int8 against float on the validation images; None with one file."""
    ship: str
    reason: str
