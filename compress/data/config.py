"""Settings of the data: splits and augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

MAX_SIDE = 2048
"""Of a network's images, pixels; the largest that pretrained classifiers take is 800."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a data set is split, sized and augmented."""

    validation: Annotated[
        float,
        Field(gt=0, lt=0.5, description="Share of the training images held out for decisions."),
    ] = 0.08
    size: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_SIDE,
            description="Image side in pixels; 0 takes the set's own (folders: 224).",
        ),
    ] = 0
    flip: Annotated[
        Literal["auto", "on", "off"],
        Field(description="Mirror training images at random; auto: not for digits."),
    ] = "auto"
    shift: Annotated[
        int, Field(ge=0, description="Largest random shift in pixels (sets held in memory).")
    ] = 1
    min_scale: Annotated[
        float,
        Field(gt=0, le=1, description="Smallest share of the area a random crop keeps (folders)."),
    ] = 0.35
    threads: Annotated[
        int,
        Field(ge=0, description="Threads that decode images (folders); 0: one for each core."),
    ] = 0
