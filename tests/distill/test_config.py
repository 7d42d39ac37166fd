"""Settings of stage distill."""

import dataclasses

import pytest

from compress.distill.config import DistillConfig
from compress.kd.config import KDConfig
from compress.train.config import MUON, TrainConfig


def test_defaults() -> None:
    config = DistillConfig()
    assert config.kd == KDConfig()
    assert config.train == dataclasses.replace(MUON, epochs=12, batch_size=256, lr=0.01)
    assert config.ablation is False


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="blended by mixup"):
        DistillConfig(train=TrainConfig(mixup=0.1))
