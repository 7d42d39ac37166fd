import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from compress.data.augment import Augmentation
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.data.splits import (
    TensorSplit,
    View,
    labeled_share,
    shifted_crop,
    stratified_sample,
    stratified_split,
)
from compress.errors import DataError


def test_the_stratified_split_takes_the_same_share_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 100 + [2] * 10)
    kept, taken = stratified_split(labels, 0.1, seed=3)
    assert sorted([*kept.tolist(), *taken.tolist()]) == list(range(160))
    assert torch.bincount(labels[taken]).tolist() == [5, 10, 1]
    again = stratified_split(labels, 0.1, seed=3)[1]
    other = stratified_split(labels, 0.1, seed=4)[1]
    assert torch.equal(taken, again)
    assert not torch.equal(taken, other)


def test_a_class_of_two_keeps_one_on_each_side() -> None:
    kept, taken = stratified_split(torch.tensor([0, 0, 1, 1]), 0.1, seed=0)
    assert (len(kept), len(taken)) == (2, 2)


def test_a_shifted_crop_equals_padding_and_slicing() -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    top, left = torch.tensor([0, 3]), torch.tensor([4, 1])
    got = shifted_crop(images, top, left, margin=2)
    padded = F.pad(images, (2, 2, 2, 2))
    assert torch.equal(got[0], padded[0, :, 0:4, 4:9])
    assert torch.equal(got[1], padded[1, :, 3:7, 1:6])


def test_a_view_shows_an_image_the_same_in_any_order(digits: Data) -> None:
    view = View(seed=1, number=2)
    straight = next(iter(digits.train.batches(100, view=view)))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    shuffled = next(iter(digits.train.batches(100, order=order, view=view)))
    assert torch.equal(shuffled.images, straight.images[order])
    other = next(iter(digits.train.batches(100, view=View(seed=1, number=3))))
    assert not torch.equal(other.images, straight.images)


def test_digits_are_not_mirrored_but_clothes_may_be() -> None:
    one = torch.zeros(64, 1, 4, 4, dtype=torch.uint8)
    one[..., 0] = 255
    labels = torch.zeros(64, dtype=torch.int64)
    view = View(seed=0, number=0)
    still = TensorSplit(images=one, labels=labels, augmentation=Augmentation(), shift=0)
    mirrored = dataclasses.replace(still, augmentation=Augmentation(flip=True))
    assert torch.equal(next(iter(still.batches(64, view=view))).images, one)
    share = (next(iter(mirrored.batches(64, view=view))).images[:, 0, 0, 3] == 255).float().mean()
    assert 0.3 < share < 0.7


def test_the_three_splits_share_no_image(digits: Data) -> None:
    splits = (digits.train, digits.validation, digits.test)
    assert sum(len(split) for split in splits) == 1797
    assert len(digits.validation) > 100
    for split in splits:
        assert set(split.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_images_are_trained_on_and_scored_in_their_grays(
    tmp_path: Path, suffix: str
) -> None:
    by_hand = {"dark": (257 * 40, 40), "bright": (257 * 200 + 128, 200)}  # 16 bits, 8 bits
    for split in ("train", "val", "test"):
        for name, (wide, _) in by_hand.items():
            (tmp_path / split / name).mkdir(parents=True)
            gray = np.full((32, 32), wide, np.uint16)
            Image.fromarray(gray).save(tmp_path / split / name / f"0.{suffix}")
    data = load_data(f"imagefolder:{tmp_path}", DataConfig(size=16), seed=0)
    assert data.class_names == ("bright", "dark")
    for view in (None, View(seed=0, number=0)):
        images = next(iter(data.train.batches(2, view=view))).images
        assert (images[0] == 200).all()
        assert (images[1] == 40).all()


def test_scored_and_trained_images_are_turned_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.zeros((32, 32, 3), np.uint8)
    half[:16] = 255
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(half).save(tmp_path / split / name / f"{number}.png", exif=exif)
    config = DataConfig(size=16, flip="off", min_scale=1.0)
    data = load_data(f"imagefolder:{tmp_path}", config, seed=0)
    for view in (None, View(seed=0, number=0)):
        images = next(iter(data.train.batches(1, view=view))).images
        assert (images[..., :4] == 0).all()  # the top is on the right now
        assert (images[..., -4:] == 255).all()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 1)])
def test_odd_sizes_are_trained_on(tmp_path: Path, size: tuple[int, int]) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("L", size, 99).save(tmp_path / split / name / f"{number}.png")
    data = load_data(f"imagefolder:{tmp_path}", DataConfig(size=16), seed=0)
    for view in (None, View(seed=0, number=0)):
        assert (next(iter(data.train.batches(2, view=view))).images == 99).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_damaged_after_the_check_is_told_in_a_line(tmp_path: Path, threads: int) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(10):
                Image.new("L", (20, 20), 99).save(tmp_path / split / name / f"{number}.png")
    data = load_data(
        f"imagefolder:{tmp_path}", DataConfig(size=16, threads=threads, cache=False), seed=0
    )
    damaged = tmp_path / "train" / "a" / "3.png"
    damaged.write_text("not an image")
    with pytest.raises(DataError) as caught:
        list(data.train.batches(4))
    assert str(caught.value).startswith(f"{damaged} is damaged")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 10, 60, 200, 1000, 5000])
def test_a_sample_has_each_class_in_proportion(count: int) -> None:
    """The labels of a folder come in the order of its classes."""
    labels = torch.arange(10).repeat_interleave(torch.tensor([100] * 8 + [20, 180]))
    sample = stratified_sample(labels, count, seed=0)
    assert len(sample) == min(count, 1000) == len(sample.unique())
    found = torch.bincount(labels[sample], minlength=10)
    expected = torch.bincount(labels) * len(sample) / 1000
    assert (found - expected).abs().max() <= 1
    assert torch.equal(sample, stratified_sample(labels, count, seed=0))
    if 1 < count < 1000:
        assert not torch.equal(sample, stratified_sample(labels, count, seed=1))


def test_a_share_of_each_class_keeps_its_labels() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    labeled, others = labeled_share(labels, 0.1, seed=0)
    assert labels[labeled].bincount().tolist() == [5, 1, 1]  # the only image of class 2 stays
    assert torch.cat([labeled, others]).sort().values.tolist() == list(range(61))
    labeled, others = labeled_share(labels, 1.0, seed=0)
    assert len(labeled) == 61
    assert not len(others)
