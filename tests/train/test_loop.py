import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.architectures.build import Classifier, build
from compress.data.load import Data
from compress.data.splits import TensorSplit
from compress.files import read_checked
from compress.train.config import MUON, TrainConfig
from compress.train.epoch import NonFiniteLossError, TrainBatch, label_loss
from compress.train.evaluate import evaluate
from compress.train.loop import train
from compress.train.prepare import make_ema, raise_batchnorm_momentum
from compress.train.state import STATE
from tests.conftest import student_spec

SHORT = TrainConfig(epochs=3, min_steps=0, batch_size=128, precision="fp32")
EVERYTHING = replace(SHORT, ema=0.9, mixup=0.2, start_size=0.5)
WITH_MUON = replace(MUON, epochs=4, min_steps=0, batch_size=128, lr=0.005, precision="fp32")


def run(data: Data, folder: Path, config: TrainConfig, *, stop_after: int = 99) -> Classifier:
    """Trains a small network; after `stop_after` epochs the process 'dies' in the next one."""
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
def test_an_interrupted_run_ends_as_an_undisturbed_one(
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


def test_a_network_of_one_size_is_not_shown_smaller_images(
    digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = replace(student_spec(digits), architecture="simple_cnn", arguments={})
    model = build(spec)
    config = replace(SHORT, epochs=2, start_size=0.5)
    rows = train(model, digits, config, loss=label_loss(0.0), seed=0, folder=tmp_path, title="test")
    assert [row.image_size for row in rows] == [16, 16]
    assert "progressive resizing is off" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_network_trains_alike(digits: Data, tmp_path: Path) -> None:
    """torch.compile builds C++ kernels here; rounding differs a little."""
    losses = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        model = run(digits, folder, replace(SHORT, epochs=1, compile=compiled))
        losses.append(json.loads((folder / "history.jsonl").read_text())["loss"])
        assert model.state_dict().keys() == build(student_spec(digits)).state_dict().keys()
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_another_seed_gives_another_network(digits: Data, tmp_path: Path) -> None:
    first = run(digits, tmp_path / "a", SHORT)
    torch.manual_seed(0)
    model = build(student_spec(digits))
    loss = label_loss(SHORT.label_smoothing)
    train(model, digits, SHORT, loss=loss, seed=6, folder=tmp_path / "b", title="test")
    assert not same(first, model)


@pytest.mark.parametrize("config", [TrainConfig(), WITH_MUON], ids=["sgd", "muon"])
def test_training_learns(digits: Data, tmp_path: Path, config: TrainConfig) -> None:
    model = build(student_spec(digits))
    loss = label_loss(0.1)
    config = replace(config, epochs=1, min_steps=130)
    history = train(model, digits, config, loss=loss, seed=0, folder=tmp_path, title="test")
    assert len(history) == 12  # 130 steps of 11 an epoch
    assert history[-1].validation_top1 > 90
    assert history[-1].loss < history[0].loss


def test_a_diverging_run_stops_with_a_remedy(digits: Data, tmp_path: Path) -> None:
    model = build(student_spec(digits))
    loss = label_loss(0.0)
    config = replace(SHORT, lr=1e30, clip_norm=0)
    with pytest.raises(NonFiniteLossError, match="divide train.lr by ten"):
        train(model, digits, config, loss=loss, seed=0, folder=tmp_path, title="test")


def test_zero_epochs_leave_the_network_alone(digits: Data, tmp_path: Path) -> None:
    model = run(digits, tmp_path, replace(SHORT, epochs=0))
    torch.manual_seed(0)
    assert same(model, build(student_spec(digits)))


def test_the_saved_state_is_plain_data(digits: Data, tmp_path: Path) -> None:
    run(digits, tmp_path, replace(SHORT, epochs=1))
    packed = read_checked(tmp_path / STATE)
    assert packed is not None
    state = torch.load(io.BytesIO(packed), weights_only=True)
    assert sorted(state) == [
        "average",
        "best",
        "history",
        "losses",
        "micro_batch",
        "model",
        "optimizer",
    ]


def test_the_history_has_a_row_an_epoch_with_units(digits: Data, tmp_path: Path) -> None:
    run(digits, tmp_path, SHORT)
    rows = [json.loads(row) for row in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert set(rows[0]) >= {"lr", "loss", "validation_top1", "images_per_second", "precision"}


def test_statistics_of_slow_batchnorms_are_those_of_the_images(digits: Data) -> None:
    """MNASNet's momentum of 0.0003 keeps the initial variance of 1 through a short training."""
    torch.manual_seed(0)
    model = nn.BatchNorm2d(1, momentum=0.0003, affine=False)
    raise_batchnorm_momentum(model, steps=60)
    images = next(iter(digits.train.batches(200))).images.float() / 255
    for _ in range(60):
        model(images)
    assert model.running_var is not None
    assert model.running_var.item() == pytest.approx(float(images.var()), rel=1e-4)
    fast = nn.BatchNorm2d(1)
    raise_batchnorm_momentum(fast, steps=100_000)
    assert fast.momentum == 0.1


def test_an_average_warms_up() -> None:
    """Weights 0, 1, 2, ...: by hand up to the third, and close behind the last after 200."""
    model = nn.Linear(1, 1, bias=False)
    average = make_ema(model, 0.999)
    assert average is not None
    means = []
    for step in range(200):
        nn.init.constant_(model.weight, step)
        average.update_parameters(model)
        means.append(next(average.module.parameters()).item())
    second = 2 / 11 * 0 + 9 / 11 * 1
    third = 3 / 12 * second + 9 / 12 * 2
    assert means[:3] == pytest.approx([0, second, third])
    assert 199 - means[-1] < 25  # without a warm-up it would be 181 behind
    assert make_ema(model, 0) is None


def test_an_average_forgets_no_faster_than_its_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = make_ema(model, 0.5)
    assert average is not None
    for weight in (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0):
        nn.init.constant_(model.weight, weight)
        average.update_parameters(model)
    assert next(average.module.parameters()).item() == pytest.approx(0.5)


def test_few_images_are_scored_of_all_classes(digits: Data) -> None:
    """A folder lists its images class by class: the first ones are all of the first."""
    assert isinstance(digits.validation, TensorSplit)
    order = digits.validation.labels.argsort(stable=True)
    images, labels = digits.validation.images[order], digits.validation.labels[order]
    ordered = replace(digits.validation, images=images, labels=labels)

    class FirstClass(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return F.one_hot(torch.zeros(len(images), dtype=torch.int64), 10).float()

    _, top1 = evaluate(FirstClass(), ordered, images=20)
    assert top1 == pytest.approx(10, abs=5)
