"""Settings of stage export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """When the int8 file is good enough to ship."""

    max_drop: Annotated[
        float,
        Field(
            ge=0,
            description="Points of validation top-1 that int8 may lose before the float file "
            "ships instead.",
        ),
    ] = 1.0
