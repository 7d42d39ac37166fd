"""Settings of the distill stage."""

import dataclasses
from dataclasses import dataclass, field

from compress.kd.config import KDConfig, check_kd
from compress.train.config import MUON, TrainConfig


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Train the student with knowledge distillation."""

    kd: KDConfig = field(default=KDConfig())
    train: TrainConfig = field(
        default=dataclasses.replace(MUON, epochs=12, batch_size=256, lr=0.01)
    )
    ablation: bool = False
    """Also train the student without a teacher for the same amount of time and report whether
    distillation helped."""

    def __post_init__(self) -> None:
        check_kd(self.kd, self.train)
