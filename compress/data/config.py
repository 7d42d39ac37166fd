"""Data settings."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Policy = Literal["none", "light", "trivial", "rand"]

MAX_SIDE = 2048
"""Largest image side in pixels; pretrained classifiers take up to 800."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a dataset is split, sized, and augmented."""

    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.08
    """Fraction of the training images held out for validation."""
    labels: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training labels used, per class; the other images count as unlabeled."""
    size: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 0
    """Image side in pixels; 0 uses the dataset's own (224 for folders)."""
    augment: Policy = "light"
    """Augmentation of training images: none; light (random crops and flips); or light and
    TrivialAugment (trivial) or RandAugment (rand)."""
    flip: Literal["auto", "on", "off"] = "auto"
    """Random horizontal flips; auto turns them off for digits."""
    vertical_flip: bool = False
    """Random vertical flips, for images without an up and down."""
    rotate: bool = False
    """Random rotations by 90, 180, or 270 degrees."""
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of erasing a random region."""
    shift: Annotated[int, Field(ge=0)] = 1
    """Maximum random shift in pixels (in-memory datasets only)."""
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Minimum fraction of the area kept by a random crop (folders only)."""
    cache: bool = True
    """Keep decoded images in the cache folder, so that each is decoded once (folders only)."""
    cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Maximum size of all decoded images in the cache folder, in GB (folders only); datasets that
    do not fit are decoded in every epoch."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Image decoding threads (folders only); 0 uses one per core."""
