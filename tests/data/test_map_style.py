"""Datasets of all kinds of images give the same uint8 images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.data.splits import UNLABELED
from compress.errors import CompressError, DataError
from compress.trust import set_trusted

SIDE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Pairs = list[tuple[Any, int]]


def photographs() -> list[np.ndarray]:
    """48 crops of two photographs, uint8 `[32, 32, 3]`."""
    generator = np.random.default_rng(0)
    crops = []
    for number in range(48):
        image = load_sample_images().images[number % 2]
        top, left = (int(generator.integers(length - SIDE)) for length in image.shape[:2])
        crops.append(np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE]))
    return crops


def scaled(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def normalized(array: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (scaled(array) - mean) / std


def loaded(convert: Callable[[np.ndarray], Any], **options: Any) -> Data:
    pairs = [(convert(image), number % 2) for number, image in enumerate(photographs())]
    return Data.from_datasets(train=pairs[:32], test=pairs[32:], **options)


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda array: array,
        lambda array: torch.from_numpy(array).permute(2, 0, 1),
        scaled,
        normalized,
    ],
    ids=["PIL", "array", "uint8 tensor", "0 to 1", "normalized"],
)
def test_all_kinds_of_images_are_read(convert: Callable[[np.ndarray], Any]) -> None:
    data = loaded(convert, config=DataConfig(size=SIDE if convert is Image.fromarray else 0))
    images = next(iter(data.test.batches(16))).images
    if convert is Image.fromarray:  # resized to 256 / 224 of the size, then cropped
        assert images.shape == (16, 3, SIDE, SIDE)
        return
    expected = np.stack(photographs()[32:]).transpose(0, 3, 1, 2)
    assert np.array_equal(images.numpy(), expected)
    assert data.preprocess.mean == MEAN
    assert (len(data.train), len(data.validation)) == (30, 2)
    assert data.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([], {}, "the training dataset is empty"),
        ([("image", 0)], {}, "must be a PIL image, .* got str"),
        ([(np.zeros((32, 30, 3), np.uint8), 0)], {}, "images must be square, got 32 x 30"),
        ([(np.zeros((32, 32), np.uint8), 0)], {}, "pass mean and std, 1 number each"),
        ([(torch.full((3, 8, 8), 9.0), 0)], {}, "has values from 9 to 9, but 0 to 1 is expected"),
        ([(torch.full((3, 8, 8), -9.0), 0)], {}, "undoing mean and std gives values from -1.62"),
        ([(torch.zeros(3, 8, 8), 0)], {"mean": MEAN}, "pass both mean and std"),
        ([(torch.zeros(3, 8, 8), 3)], {"class_names": "ab"}, "labels are 3 to 3, but there are 2"),
        ([(torch.zeros(3, 8, 8), 0)], {}, "no class has two training images"),
        (
            [(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 9, 9), 1)],
            {},
            r"training image 1 has shape \(3, 9, 9\)",
        ),
    ],
)
def test_unusable_datasets_are_explained(
    pairs: Pairs, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Data.from_datasets(train=pairs, test=pairs, **options)


@pytest.mark.parametrize("label", [None, 9, "unknown"])
def test_unlabeled_images_may_have_labels_to_ignore(label: object) -> None:
    images = photographs()
    more = images[:5] if label is None else [(image, label) for image in images[:5]]
    without = loaded(scaled)
    data = loaded(scaled, unlabeled=more)
    assert data.unlabeled is not None
    assert data.unlabeled.labels.tolist() == [UNLABELED] * 5
    (batch,) = data.unlabeled.batches(5)
    assert np.array_equal(batch.images.numpy(), np.stack(images[:5]).transpose(0, 3, 1, 2))
    assert len(data.with_unlabeled().train) == len(without.train) + 5
    assert data.fingerprint != without.fingerprint


def test_unused_labels_come_before_unlabeled_images() -> None:
    data = loaded(scaled, unlabeled=photographs()[:5], config=DataConfig(labels=0.5))
    assert data.unlabeled is not None
    assert (len(data.train), len(data.unlabeled)) == (16, 14 + 5)
    *_, last = data.unlabeled.batches(1)
    assert np.array_equal(last.images[0].numpy(), photographs()[4].transpose(2, 0, 1))


def test_an_unlabeled_image_of_another_size_is_named() -> None:
    with pytest.raises(DataError, match=r"unlabeled image 0 has shape \(3, 9, 9\)"):
        loaded(scaled, unlabeled=[torch.zeros(3, 9, 9)])


MODULE = """
import numpy as np

def pairs(count):
    images = np.random.default_rng(count).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return [(image, number % 2) for number, image in enumerate(images)]

def photos():
    return {"train": pairs(40), "test": pairs(10), "class_names": ["a", "b"]}

def wrong():
    return {"training": pairs(40)}

def nothing():
    return None

class Faulty(list):
    def __getitem__(self, index):
        return super().__getitem__(index) + 1

def faulty():
    return {"train": Faulty(pairs(40)), "test": pairs(10)}

def copied():
    return {"train": pairs(40), "test": pairs(40)}
"""


def test_the_command_line_takes_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_data.py").write_text(MODULE)
    with pytest.raises(CompressError, match="the data set 'own_data:photos' is external code"):
        load_data("own_data:photos", DataConfig(), seed=0)
    set_trusted(True)
    try:
        data = load_data("own_data:photos", DataConfig(), seed=0)
        assert data.class_names == ("a", "b")
        assert data.name == "own_data:photos"
        assert data.fingerprint == load_data("own_data:photos", DataConfig(), seed=0).fingerprint
        with pytest.raises(
            DataError,
            match="'training'|missing a required",
        ):
            load_data("own_data:wrong", DataConfig(), seed=0)
        with pytest.raises(DataError, match="must return a dict .* got NoneType"):
            load_data("own_data:nothing", DataConfig(), seed=0)
        with pytest.raises(TypeError, match="can only concatenate"):  # a bug of the user's code
            load_data("own_data:faulty", DataConfig(), seed=0)
        load_data("own_data:copied", DataConfig(), seed=0)
        assert "of 40 test images also in the training split" in capsys.readouterr().err
    finally:
        set_trusted(False)
