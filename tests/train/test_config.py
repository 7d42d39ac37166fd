"""Defaults, which published figures depend on."""

import dataclasses

import pytest

from compress.settings import parse
from compress.teacher.config import TeacherConfig
from compress.train.config import MUON, TrainConfig


def test_defaults() -> None:
    assert dataclasses.asdict(TrainConfig()) == {
        "epochs": 8,
        "min_steps": 120,
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup": 0.15,
        "label_smoothing": 0.1,
        "clip_norm": 5.0,
        "ema": 0.0,
        "mixup": 0.0,
        "start_size": 1.0,
        "data_fraction": 1.0,
        "patience": 0,
        "precision": "auto",
        "compile": False,
    }


def test_defaults_with_muon() -> None:
    changed = {
        name: value
        for name, value in dataclasses.asdict(MUON).items()
        if value != getattr(TrainConfig(), name)
    }
    assert changed == {
        "optimizer": "muon",
        "momentum": 0.95,
        "weight_decay": 0.1,
        "data_fraction": 0.5,
    }


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", -1),
        ("batch_size", 1),
        ("lr", 0.0),
        ("momentum", 1.0),
        ("warmup", 1.0),
        ("label_smoothing", 1.0),
        ("ema", 1.0),
        ("start_size", 0.0),
        ("start_size", 1.1),
        ("data_fraction", 0.0),
        ("precision", "fp16"),
    ],
)
def test_values_out_of_range_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"teacher.train.{setting}"):
        parse(TeacherConfig(), {"train": {setting: value}}, section="teacher")
