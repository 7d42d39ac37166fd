"""Settings of the quantize stage."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from compress.int8.config import Observer, WeightScale
from compress.kd.config import KDConfig, check_kd
from compress.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """int8 weights and activations, with ranges from calibration images."""

    method: Literal["auto", "ptq", "qat"] = "auto"
    """ptq: post-training quantization with the corrections you enable; qat: the same, then
    quantization-aware training; auto: ptq, then, while the drop exceeds max_drop, all corrections,
    the most sensitive layers in float, and finally qat."""
    calib: Annotated[int, Field(ge=1)] = 512
    """Maximum number of training images used for calibration."""
    observer: Literal[Observer, "auto"] = "mse"
    """Observer for activation ranges; auto picks the best on validation images."""
    weights: WeightScale = "mse"
    """Weight scales: by largest magnitude or smallest squared error."""
    equalization: bool = False
    """Cross-layer equalization of channel ranges."""
    bias_correction: bool = False
    """Bias correction; auto always tries it."""
    adaround: bool = False
    """AdaRound: learn how to round each weight."""
    max_drop: Annotated[float, Field(ge=0)] = 0.3
    """Maximum drop in validation top-1 that auto accepts, in percentage points."""
    reduce_range: bool = False
    """7-bit weights in layers that would saturate on CPUs without VNNI."""
    kd: KDConfig = field(default=KDConfig())
    train: TrainConfig = field(
        # With 256 levels, bf16's 8 bits of precision are too few.
        default=TrainConfig(epochs=2, batch_size=128, lr=0.003, precision="fp32")
    )

    def __post_init__(self) -> None:
        check_kd(self.kd, self.train)
