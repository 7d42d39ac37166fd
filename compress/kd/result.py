"""Results of ablations."""

from dataclasses import dataclass

from compress.measure.results import Count, Percent
from compress.measure.statistics import PairedDifference


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A new network of the same shape, trained in another way for the same time."""

    top1: Percent
    """Top-1 on the test images in ONNX Runtime, in percent."""
    top1_ci95: tuple[Percent, Percent]
    gain: PairedDifference
    """The stage's float network against this one, on the test images in ONNX Runtime."""
    epochs: Count
    seconds: float
    """Time of the epochs and the teacher logits."""
    available_seconds: float
    """The same of the network that it is compared with."""
