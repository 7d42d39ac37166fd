"""Epochs against a plain PyTorch loop, and the sequence of views and steps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.augment import Augmentation
from compress.data.dataset import Data
from compress.data.splits import TensorSplit, View
from compress.train.config import TrainConfig
from compress.train.epoch import NonFiniteLossError, TrainBatch, label_loss
from compress.train.loop import train
from compress.train.schedule import learning_rate, select_images, steps_per_epoch
from compress.train.state import Epoch, read_state

CONFIG = TrainConfig(epochs=2, min_steps=0, batch_size=64, precision="fp32", lr=0.05, clip_norm=0.5)


class Linear(nn.Module):
    """One layer on standardized images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[N, 1, 16, 16]` to `[N, 10]`."""
        return self.fc(images.flatten(1) / 128 - 1)  # type: ignore[no-any-return]


@pytest.fixture
def plain(digits: Data) -> Data:
    """Without augmentation."""
    assert isinstance(digits.train, TensorSplit)
    return replace(digits, train=replace(digits.train, augmentation=Augmentation(), shift=0))


def trained(
    data: Data, folder: Path, config: TrainConfig, *, n_views: int = 0
) -> tuple[Linear, list[Epoch], list[TrainBatch]]:
    model, batches = Linear(), []
    cross_entropy = label_loss(config.label_smoothing)

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        batches.append(batch)
        return cross_entropy(logits, batch)

    history = train(
        model, data, config, loss=loss, seed=3, folder=folder, title="test", n_views=n_views
    )
    return model, history, batches


def test_an_epoch_equals_a_plain_loop(plain: Data, tmp_path: Path) -> None:
    config = replace(CONFIG, data_fraction=0.5, epochs=3)
    model, history, _ = trained(plain, tmp_path, config)

    assert isinstance(plain.train, TensorSplit)
    images, labels = plain.train.images.float(), plain.train.labels
    expected, n_images = Linear(), len(labels)
    optimizer = torch.optim.SGD(
        [
            {"params": [expected.fc.weight], "weight_decay": 5e-4},
            {"params": [expected.fc.bias], "weight_decay": 0.0},
        ],
        lr=1.0,
        momentum=0.9,
        nesterov=True,
    )
    counts = [n_images, round(0.5 * n_images), n_images]
    steps = [steps_per_epoch(count, 64) for count in counts]
    latest, step = torch.zeros(n_images), 0
    for epoch, count in enumerate(counts):
        order = select_images(latest, count, View(seed=3, number=epoch).generator(1))
        losses, correct = [], 0
        for index in order.split(64)[: steps[epoch]]:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, sum(steps), config)
            logits = expected(images[index])
            loss = F.cross_entropy(logits, labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
            optimizer.step()
            latest[index] = F.cross_entropy(logits.detach(), labels[index], reduction="none")
            losses.append(loss.item())
            correct += int((logits.argmax(1) == labels[index]).sum())
            step += 1
        assert history[epoch].loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        seen = min(count, 64 * steps[epoch])
        assert history[epoch].train_top1 == pytest.approx(100 * correct / seen, abs=0.2)
    torch.testing.assert_close(model.fc.weight, expected.fc.weight, atol=1e-5, rtol=1e-4)
    state = read_state(tmp_path)
    assert state is not None
    torch.testing.assert_close(state["losses"], latest, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("n_views", "expected"), [(0, [0, 1, 2, 3]), (3, [0, 1, 2, 0])])
def test_views_are_new_in_each_epoch_or_cycled(
    digits: Data, tmp_path: Path, n_views: int, expected: list[int]
) -> None:
    _, _, batches = trained(digits, tmp_path, replace(CONFIG, epochs=4), n_views=n_views)
    views = [batch.view for batch in batches if batch.step_of_epoch == 0]
    assert views == [View(seed=3, number=number) for number in expected]
    assert [batch.step for batch in batches] == list(range(len(batches)))
    per_epoch = len(batches) // 4
    assert [batch.step_of_epoch for batch in batches] == 4 * list(range(per_epoch))


def test_images_are_resized_progressively(digits: Data, tmp_path: Path) -> None:
    class Pooled(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(F.adaptive_avg_pool2d(images.float(), 16))

    sizes = []

    def loss(logits: Tensor, batch: TrainBatch) -> Tensor:
        sizes.append(batch.images.shape[-1])
        return label_loss(0.0)(logits, batch)

    config = replace(CONFIG, epochs=4, start_size=0.5)
    train(Pooled(), digits, config, loss=loss, seed=0, folder=tmp_path, title="test")
    assert [sizes[len(sizes) * epoch // 4] for epoch in range(4)] == [12, 12, 16, 16]


def test_mixup_blends_images_like_targets(plain: Data, tmp_path: Path) -> None:
    _, _, batches = trained(plain, tmp_path, replace(CONFIG, epochs=1, mixup=0.5))
    assert isinstance(plain.train, TensorSplit)
    originals = plain.train.images.float()
    batch = batches[0]
    labels = plain.train.labels[batch.index]
    neighbors = batch.index.roll(1)
    row = int((labels != labels.roll(1)).nonzero()[0])
    ratio = batch.targets[row, labels[row]]
    blended = ratio * originals[batch.index[row]] + (1 - ratio) * originals[neighbors[row]]
    torch.testing.assert_close(batch.images[row], blended, atol=1e-3, rtol=1e-4)


def test_divergence_raises_and_names_settings(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="divide train.lr by ten"):
        trained(digits, tmp_path, replace(CONFIG, lr=1e38, clip_norm=0))


def test_unlabeled_images_have_no_label_loss_and_no_score() -> None:
    targets = F.one_hot(torch.tensor([3, 5, 0]), 10).float()
    targets[2] = 0
    batch = TrainBatch(
        images=torch.zeros(3, 1, 16, 16), targets=targets, index=torch.arange(3),
        view=View(seed=0, number=0), step=0, step_of_epoch=0,
    )  # fmt: skip
    logits = torch.randn(3, 10)
    expected = F.cross_entropy(logits[:2], torch.tensor([3, 5]), label_smoothing=0.1) * 2 / 3
    assert batch.labeled.tolist() == [True, True, False]
    torch.testing.assert_close(label_loss(0.1)(logits, batch), expected)
