import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.architectures.build import Classifier, build
from compress.data.dataset import Data
from compress.train.config import MUON, TrainConfig
from compress.train.epoch import TrainBatch, label_loss
from compress.train.loop import train
from tests.conftest import student_spec

SHORT = TrainConfig(epochs=3, min_steps=0, batch_size=128, precision="fp32")
EVERYTHING = replace(SHORT, ema=0.9, mixup=0.2, start_size=0.5)
WITH_MUON = replace(MUON, epochs=4, min_steps=0, batch_size=128, lr=0.005, precision="fp32")


def run(data: Data, folder: Path, config: TrainConfig, *, stop_after: int = 99) -> Classifier:
    """Trains a small network; the process "dies" in the epoch after `stop_after`."""
    torch.manual_seed(0)
    model = build(student_spec(data))
    plain, epochs = label_loss(config.label_smoothing), []

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        epochs.append(batch.view.number)
        if epochs.count(stop_after) == 4:
            raise KeyboardInterrupt
        return plain(logits, batch)

    train(model, data, config, loss=loss, seed=5, folder=folder, title="test")
    return model


def same(a: Classifier, b: Classifier) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("config", [SHORT, EVERYTHING, WITH_MUON])
def test_an_interrupted_run_ends_with_the_same_weights(
    digits: Data, tmp_path: Path, config: TrainConfig
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    undisturbed = run(digits, whole, config)
    with pytest.raises(KeyboardInterrupt):
        run(digits, cut, config, stop_after=2)
    rows = (cut / "history.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert same(run(digits, cut, config), undisturbed)
    histories = [
        [json.loads(row)["loss"] for row in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (whole, cut)
    ]
    assert histories[0] == histories[1]


def test_a_network_with_a_fixed_input_size_trains_at_full_size(
    digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = replace(student_spec(digits), architecture="simple_cnn", arguments={})
    model = build(spec)
    config = replace(SHORT, epochs=2, start_size=0.5)
    rows = train(model, digits, config, loss=label_loss(0.0), seed=0, folder=tmp_path, title="test")
    assert [row.image_size for row in rows] == [16, 16]
    assert "progressive resizing is off" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_network_trains_the_same(digits: Data, tmp_path: Path) -> None:
    """torch.compile builds C++ kernels here; rounding differs a little."""
    losses = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        model = run(digits, folder, replace(SHORT, epochs=1, compile=compiled))
        losses.append(json.loads((folder / "history.jsonl").read_text())["loss"])
        assert model.state_dict().keys() == build(student_spec(digits)).state_dict().keys()
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_the_seed_alone_decides_the_result(digits: Data, tmp_path: Path) -> None:
    models = []
    for number, seed in enumerate((5, 5, 6)):
        torch.manual_seed(0)
        models.append(build(student_spec(digits)))
        torch.manual_seed(number)  # what was drawn before must not matter
        loss, folder = label_loss(SHORT.label_smoothing), tmp_path / str(number)
        folder.mkdir()
        config = replace(SHORT, epochs=1)
        train(models[-1], digits, config, loss=loss, seed=seed, folder=folder, title="test")
    assert [same(models[0], model) for model in models] == [True, True, False]


@pytest.mark.parametrize("config", [TrainConfig(), WITH_MUON], ids=["sgd", "muon"])
def test_training_learns(digits: Data, tmp_path: Path, config: TrainConfig) -> None:
    model = build(student_spec(digits))
    loss = label_loss(0.1)
    config = replace(config, epochs=1, min_steps=130)
    history = train(model, digits, config, loss=loss, seed=0, folder=tmp_path, title="test")
    assert len(history) == 12  # 130 steps of 11 an epoch
    assert history[-1].validation_top1 > 90
    assert history[-1].loss < history[0].loss


def test_the_precision_is_chosen_by_training_steps(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def choose(*_args: object, training: bool) -> str:
        asked.append(training)
        return "bf16"

    monkeypatch.setattr("compress.train.loop.choose_precision", choose)
    config, model = replace(SHORT, epochs=1, precision="auto"), build(student_spec(digits))
    rows = train(model, digits, config, loss=label_loss(0.0), seed=0, folder=tmp_path, title="test")
    assert asked == [True]
    assert [row.precision for row in rows] == ["bf16"]


def test_zero_epochs_leave_the_network_alone(digits: Data, tmp_path: Path) -> None:
    model = run(digits, tmp_path, replace(SHORT, epochs=0))
    torch.manual_seed(0)
    assert same(model, build(student_spec(digits)))


def test_the_history_has_a_row_per_epoch(digits: Data, tmp_path: Path) -> None:
    run(digits, tmp_path, SHORT)
    rows = [json.loads(row) for row in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert set(rows[0]) >= {"lr", "loss", "validation_top1", "images_per_second", "precision"}
