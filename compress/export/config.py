"""Settings of the export stage."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Criteria for shipping the int8 file."""

    max_drop: Annotated[float, Field(ge=0)] = 1.0
    """Maximum drop in validation top-1, in percentage points, for the int8 file to ship."""
