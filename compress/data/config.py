"""Settings of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

MAX_SIDE = 2048
"""Largest image side in pixels; pretrained classifiers take up to 800."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a data set is split, sized and augmented."""

    validation: Annotated[
        float,
        Field(gt=0, lt=0.5, description="Share of the training images held out for validation."),
    ] = 0.08
    size: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_SIDE,
            description="Image side in pixels; 0: the data set's own (folders: 224).",
        ),
    ] = 0
    flip: Annotated[
        Literal["auto", "on", "off"],
        Field(description="Random horizontal flips; auto: off for digits."),
    ] = "auto"
    shift: Annotated[
        int, Field(ge=0, description="Largest random shift in pixels (data sets in memory).")
    ] = 1
    min_scale: Annotated[
        float,
        Field(
            gt=0, le=1, description="Smallest share of the area kept by a random crop (folders)."
        ),
    ] = 0.35
    threads: Annotated[
        int,
        Field(ge=0, description="Image decoding threads (folders); 0: one per core."),
    ] = 0
