"""Distillation settings: defaults, combinations that are refused, and the loss in words."""

import dataclasses
import re

import pytest

from compress.kd.config import KDConfig, check_kd, loss_text
from compress.train.config import TrainConfig


def test_defaults() -> None:
    assert dataclasses.asdict(KDConfig()) == {
        "soft_loss": "kd",
        "alpha": 0.5,
        "temperature": 4.0,
        "beta": 2.0,
        "n_views": 1,
        "fresh_views": True,
        "hints": "",
        "hint_loss": "attention",
        "hint_weight": 1.0,
    }


@pytest.mark.parametrize(
    ("kd", "train", "message"),
    [
        (
            KDConfig(hints="blocks.2:layer3"),
            TrainConfig(),
            "hints need the teacher's features, which are not stored; set kd.n_views = 0",
        ),
        (
            KDConfig(),
            TrainConfig(mixup=0.2),
            "stored teacher logits (n_views > 0) do not match images blended by mixup; set",
        ),
        (
            KDConfig(fresh_views=False),
            TrainConfig(start_size=0.5),
            "stored views do not match resized images (start_size < 1); keep kd.fresh_views on",
        ),
    ],
)
def test_stored_logits_that_do_not_fit_are_refused(
    kd: KDConfig, train: TrainConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_kd(kd, train)
    check_kd(dataclasses.replace(kd, n_views=0), train)


def test_fresh_views_allow_progressive_resizing() -> None:
    check_kd(KDConfig(), TrainConfig(start_size=0.5))


def test_the_loss_in_words() -> None:
    assert loss_text(KDConfig()) == (
        "0.5 kd (temperature 4) + 0.5 labels; stored teacher logits, 1 view per image"
    )
    assert loss_text(KDConfig(n_views=3)).endswith("; stored teacher logits, 3 views per image")
    hints = KDConfig(soft_loss="dist", alpha=0.8, n_views=0, hints="blocks.2:layer3")
    assert loss_text(hints) == (
        "0.8 dist (temperature 4) + 0.2 labels + 1 attention of blocks.2:layer3; live teacher"
    )
