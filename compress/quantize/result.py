"""Results of the quantize stage."""

from dataclasses import dataclass

from compress.int8.saturation import Saturation
from compress.measure.results import Count, Percent
from compress.measure.statistics import PairedDifference


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at quantizing; metrics on validation images, in PyTorch."""

    name: str
    top1: Percent
    drop: float
    """Drop in top-1 relative to the float network, in percentage points."""
    loss: float


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """How the network was quantized."""

    method: str
    """`ptq` or `qat`."""
    calibration_images: Count
    attempts: tuple[Attempt, ...]
    change: PairedDifference | None = None
    """int8 against float on the validation images, in ONNX Runtime; only auto compares them."""
    float_layers: tuple[str, ...]
    reduced_layers: tuple[str, ...]
    """Layers with 7-bit weights."""
    without_vnni: Saturation
