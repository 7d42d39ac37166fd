"""Settings of stage export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Criteria for shipping the int8 file."""

    max_drop: Annotated[
        float,
        Field(
            ge=0,
            description="Largest drop of validation top-1, in points, for which the int8 file "
            "ships.",
        ),
    ] = 1.0
