"""Settings of stage teacher."""

import dataclasses

from compress.teacher.config import TeacherConfig
from compress.train.config import MUON


def test_defaults() -> None:
    assert TeacherConfig().train == dataclasses.replace(
        MUON,
        epochs=7,
        batch_size=512,
        lr=0.005,
        label_smoothing=0.05,
        warmup=0.2,
        start_size=0.5,
    )
