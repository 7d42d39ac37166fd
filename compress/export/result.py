"""Results of the export stage."""

from collections.abc import Mapping
from dataclasses import dataclass

from compress.export.parity import Parity


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The exported files, and which one to ship."""

    files: tuple[str, ...]
    parity: Mapping[str, Parity]
    """Agreement with torch, by file name."""
    ship: str
    reason: str
