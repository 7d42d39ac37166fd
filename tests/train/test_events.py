"""What a training run prints, and that a callback replaces it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.data.dataset import Data
from compress.train.config import TrainConfig
from compress.train.diagnosis import Finding
from compress.train.epoch import label_loss
from compress.train.events import MAX_LINES, EpochEnd, Event, print_event
from compress.train.loop import train
from compress.train.state import Epoch
from tests.train.test_epoch import Linear

ROW = Epoch(
    epoch=1,
    image_size=16,
    lr=0.1,
    loss=1.5,
    train_top1=40.0,
    validation_loss=1.4,
    validation_top1=43.21,
    images_per_second=1234.5,
    seconds=2.0,
    precision="bf16",
)


def test_an_epoch_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_event(EpochEnd(title="teacher", epochs=3, row=ROW))
    assert capsys.readouterr().err == (
        "  teacher epoch 1/3: loss 1.500, validation 43.21 %, 1234 images/s (bf16)\n"
    )


@pytest.mark.parametrize(("epochs", "lines"), [(20, 20), (21, 11), (100, 20), (101, 17)])
def test_long_runs_print_some_epochs_and_the_last(
    epochs: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for epoch in range(1, epochs + 1):
        print_event(EpochEnd(title="t", epochs=epochs, row=replace(ROW, epoch=epoch)))
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == lines <= MAX_LINES
    assert f"epoch {epochs}/{epochs}" in printed[-1]


def test_remarks_and_findings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_event("resuming after epoch 3")
    print_event(Finding(trouble="overfitting", evidence="rose", remedy="stop"))
    assert capsys.readouterr().err == "  resuming after epoch 3\n  overfitting: rose; stop\n"


def test_a_callback_receives_everything_and_nothing_is_printed(
    digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(epochs=2, min_steps=0, precision="fp32", start_size=0.5)
    events: list[Event] = []
    torch.manual_seed(0)
    history = train(
        Linear(), digits, config, loss=label_loss(0.0), seed=0, folder=tmp_path, title="test",
        on_event=events.append,
    )  # fmt: skip
    assert events == [
        "the network has a fixed input size: progressive resizing is off",
        EpochEnd(title="test", epochs=2, row=history[0]),
        EpochEnd(title="test", epochs=2, row=history[1]),
    ]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
