"""Insights as plain data: two ONNX files compared on test images."""

from dataclasses import dataclass
from pathlib import Path

from compress.insights.config import InsightsConfig
from compress.measure.results import Count, Percent, read_typed

INSIGHTS_JSON = "insights.json"
Image = str
"""An image as a data URI."""


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """How many of a class's images each network recognizes."""

    name: str
    n_images: Count
    teacher: Percent
    shipped: Percent


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How many images of a class each network takes for another."""

    label: str
    predicted: str
    teacher: Count
    shipped: Count


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A test image that one network gets right and the other wrong."""

    index: Count
    """In the test split."""
    image: Image
    label: str
    teacher: str
    shipped: str
    teacher_confidence: Percent
    shipped_confidence: Percent


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Images of similar confidence."""

    confidence: Percent
    """Mean."""
    accuracy: Percent
    n_images: Count


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well confidence tells accuracy."""

    ece: Percent
    """Expected calibration error."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Where the predictions differ."""

    n_images: Count
    lost: Count
    """Images that only the teacher gets right."""
    won: Count
    """Images that only the shipped file gets right."""
    classes: tuple[ClassChange, ...]
    confusions: tuple[Confusion, ...]
    """Those that changed most."""
    flips: tuple[Flip, ...]
    teacher: Calibration
    shipped: Calibration


@dataclass(frozen=True, kw_only=True)
class MapExample:
    """Where both networks look on one test image."""

    index: Count
    label: str
    image: Image
    teacher: Image
    shipped: Image
    overlap: Percent


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Class-activation maps for the true class."""

    n_images: Count
    overlap: Percent
    """Median over the test images of the mass that both maps share."""
    histogram: tuple[Count, ...]
    """Images by overlap, in ten equal bins of 0..100 %."""
    examples: tuple[MapExample, ...]


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Top-1 on changed images."""

    name: str
    setting: str
    teacher: Percent
    shipped: Percent


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Top-1 on a sample of the test images, unchanged and changed."""

    n_images: Count
    rows: tuple[Corruption, ...]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What insights were measured on."""

    teacher: str
    """SHA-256 of the teacher's ONNX file."""
    shipped: str
    """SHA-256 of the ONNX file that ships."""
    data: str
    """Fingerprint of the dataset."""


@dataclass(frozen=True, kw_only=True)
class Insights:
    """The content of `insights.json`."""

    compared: Compared
    config: InsightsConfig
    predictions: Predictions | None
    maps: Maps | None
    """None, too, for a network without a linear layer on pooled features."""
    robustness: Robustness | None
    seconds: float


def read_insights(run: Path) -> Insights | None:
    """Reads a run's insights; None if it has none.

    Raises:
        CompressError: the file is damaged.
    """
    remedy = "remove it and run `compress run` again"
    return read_typed(Insights, run / INSIGHTS_JSON, remedy=remedy)
