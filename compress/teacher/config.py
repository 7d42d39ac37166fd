"""Settings of the teacher stage."""

import dataclasses
from dataclasses import dataclass, field

from compress.train.config import MUON, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Train or fine-tune the teacher, or use pretrained weights as they are (0 epochs)."""

    train: TrainConfig = field(
        default=dataclasses.replace(
            MUON,
            epochs=7,
            batch_size=512,
            lr=0.005,
            label_smoothing=0.05,
            warmup=0.2,
            start_size=0.5,
        )
    )


FINETUNE = TeacherConfig(
    train=TrainConfig(epochs=6, min_steps=300, batch_size=32, lr=0.01, warmup=0.3)
)
"""Defaults if the card names pretrained weights."""
