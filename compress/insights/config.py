"""Settings of the insights on a run's page."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class InsightsConfig:
    """What a run's page shows beside its report; each of the switches saves its time."""

    predictions: bool = True
    """Compare the predictions of the teacher's file and the shipped one: classes, flips,
    calibration."""
    maps: bool = True
    """Compare what both networks look at (class-activation maps)."""
    robustness: bool = True
    """Score both on noisy, blurred, pale, compressed, and adversarial images."""
    images: Annotated[int, Field(ge=1)] = 10_000
    """Maximum number of test images for predictions and maps."""
    robustness_images: Annotated[int, Field(ge=1)] = 1000
    """Maximum number of test images for robustness."""
