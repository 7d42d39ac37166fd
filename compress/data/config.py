"""Data settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Policy = Literal["none", "light", "trivial", "rand"]

MAX_SIDE = 2048
"""Largest image side in pixels; pretrained classifiers take up to 800."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a dataset is split, sized, and augmented."""

    validation: Annotated[
        float,
        Field(gt=0, lt=0.5, description="Fraction of the training images held out for validation."),
    ] = 0.08
    size: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_SIDE,
            description="Image side in pixels; 0 uses the dataset's own (224 for folders).",
        ),
    ] = 0
    augment: Annotated[
        Policy,
        Field(
            description="Augmentation of training images: none; light (random crops and flips); or "
            "light and TrivialAugment (trivial) or RandAugment (rand)."
        ),
    ] = "light"
    flip: Annotated[
        Literal["auto", "on", "off"],
        Field(description="Random horizontal flips; auto turns them off for digits."),
    ] = "auto"
    vertical_flip: Annotated[
        bool, Field(description="Random vertical flips, for images without an up and down.")
    ] = False
    rotate: Annotated[bool, Field(description="Random rotations by 90, 180, or 270 degrees.")] = (
        False
    )
    erasing: Annotated[
        float, Field(ge=0, le=1, description="Probability of erasing a random region.")
    ] = 0.0
    shift: Annotated[
        int, Field(ge=0, description="Maximum random shift in pixels (in-memory datasets only).")
    ] = 1
    min_scale: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Minimum fraction of the area kept by a random crop (folders only).",
        ),
    ] = 0.35
    cache: Annotated[
        bool,
        Field(
            description="Keep decoded images in the cache folder, so that each is decoded once "
            "(folders only)."
        ),
    ] = True
    cache_gb: Annotated[
        float,
        Field(
            ge=0,
            description="Maximum size of all decoded images in the cache folder, in GB (folders "
            "only); datasets that do not fit are decoded in every epoch.",
        ),
    ] = 20.0
    threads: Annotated[
        int,
        Field(ge=0, description="Image decoding threads (folders only); 0 uses one per core."),
    ] = 0
