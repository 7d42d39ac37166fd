from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.architectures.build import build
from compress.data.dataset import Data
from compress.errors import CompressError
from compress.train import micro_batch
from compress.train.config import TrainConfig
from compress.train.epoch import TrainBatch, label_loss
from compress.train.loop import train
from compress.train.micro_batch import bytes_per_image, fitting_batch, free_memory
from compress.train.state import Epoch
from tests.conftest import student_spec

CPU = torch.device("cpu")
PLAIN = TrainConfig(epochs=3, min_steps=0, batch_size=128, precision="fp32", lr=0.02)
IMAGES = torch.zeros(4, 3, 20, 20, dtype=torch.uint8)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for about 40 images of the network below."""
    monkeypatch.setattr(micro_batch, "free_memory", lambda _: 2 * 1.8 * 40 * 145_408)


def test_saved_bytes_equal_a_count_by_hand() -> None:
    """Convolution and linear layer save their input, ReLU its output; weights do not count.

    Flattening channels-last maps makes a copy.
    """
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 18 * 18, 5))
    by_hand = 4 * (3 * 20 * 20 + 2 * 8 * 18 * 18)
    assert bytes_per_image(network, IMAGES, CPU, "fp32") == by_hand


def test_the_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 18 * 18, 5))
    need = micro_batch.OVERHEAD * bytes_per_image(network, IMAGES, CPU, "fp32")
    found = []
    for room in (1000, 100, 99, 30, 2):
        monkeypatch.setattr(micro_batch, "free_memory", lambda _, room=room: 2 * room * need + 1)
        found.append(fitting_batch(network, IMAGES, 100, CPU, "fp32"))
    assert found == [100, 100, 50, 25, 2]
    monkeypatch.setattr(micro_batch, "free_memory", lambda _: 1.5 * need)
    with pytest.raises(CompressError, match="not enough memory: a batch of 2 images needs"):
        fitting_batch(network, IMAGES, 100, CPU, "fp32")


def trained(
    data: Data, folder: Path, *, stop_after: int | None = None
) -> tuple[nn.Module, list[Epoch], set[int]]:
    """Trains a network without BatchNorm; also returns how many images it saw at once."""
    torch.manual_seed(0)
    model = build(replace(student_spec(data), architecture="simple_cnn", arguments={}))
    plain, sizes = label_loss(0.1), set()

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        sizes.add(len(logits))
        if batch.view.number == stop_after:
            raise KeyboardInterrupt
        return plain(logits, batch)

    history = train(model, data, PLAIN, loss=loss, seed=0, folder=folder, title="test")
    return model, history, sizes


def test_micro_batches_add_up_to_the_batch(
    digits: Data, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    _, whole, sizes = trained(digits, tmp_path / "whole")
    assert 128 in sizes
    request.getfixturevalue("little_memory")
    _, parts, sizes = trained(digits, tmp_path / "parts")
    assert max(sizes) == 32
    assert [row.loss for row in parts] == pytest.approx([row.loss for row in whole], rel=1e-4)
    assert [row.train_top1 for row in parts] == pytest.approx(
        [row.train_top1 for row in whole], abs=0.5
    )


def test_a_resumed_run_keeps_its_micro_batch(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(micro_batch, "free_memory", lambda _: 2 * 1.8 * 40 * 145_408)
        undisturbed, _, _ = trained(digits, tmp_path / "undisturbed")
        with pytest.raises(KeyboardInterrupt):
            trained(digits, tmp_path / "cut", stop_after=1)
    resumed, _, sizes = trained(digits, tmp_path / "cut")
    assert max(sizes) == 32
    pairs = zip(undisturbed.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_this_machine_has_free_memory() -> None:
    assert 2**28 < free_memory(CPU) < 2**50
