"""Images come from the cache as they would from their files."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from sklearn.datasets import load_sample_images

from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.folders import read_folders
from compress.data.image_cache import FOLDER, PIXELS
from compress.data.load import load_data
from compress.data.preprocess import Inputs
from compress.data.splits import FolderSplit, View
from compress.files import cache_folder
from tests.data.test_folders import write_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of 20 to 60 px in four formats, two large photographs, in color and in gray.

    They have a cache of their own.
    """
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    write_images(root, {"train": 20, "val": 4, "test": 6}, ("blue", "green"))
    for image in load_sample_images().images:
        photo, name = Image.fromarray(image), f"{image[0, 0, 0]}.jpg"
        photo.save(root / "test" / "blue" / name, quality=95)
        photo.convert("L").save(root / "train" / "green" / name, quality=95)
    return root


def load(root: Path, **settings: object) -> Data:
    config = dataclasses.replace(DataConfig(size=32), **settings)  # type: ignore[arg-type]
    return load_data(f"imagefolder:{root}", config, seed=0)


def everything(data: Data) -> torch.Tensor:
    """Every image, as scored, and two views of the training images."""
    parts = [data.train.batches(7, view=view) for view in (View(seed=0, number=n) for n in (0, 1))]
    parts += [split.batches(7) for split in (data.train, data.validation, data.test)]
    return torch.cat([batch.images for part in parts for batch in part])


def caches() -> list[Path]:
    return [path for path in (cache_folder() / FOLDER).iterdir() if path.is_dir()]


def test_images_are_the_same_with_and_without_a_cache(photos: Path) -> None:
    plain, cached = load(photos, cache=False), load(photos)
    assert plain.fingerprint == cached.fingerprint
    assert isinstance(plain.train, FolderSplit)
    assert isinstance(cached.train, FolderSplit)
    assert plain.train.cache is None
    assert cached.train.cache is not None
    assert torch.equal(everything(plain), everything(cached))


@pytest.mark.usefixtures("photos")
def test_gray_images_take_a_third_of_the_space(tmp_path: Path) -> None:
    sizes = []
    for mode in ("RGB", "L"):
        root = tmp_path / mode
        for folder in ("train/a", "train/b", "test/a", "test/b"):
            (root / folder).mkdir(parents=True)
            Image.new(mode, (40, 50)).save(root / folder / "0.png")
        cache = read_folders(root, Inputs().preprocess(32), DataConfig()).cache
        assert cache is not None
        assert {cache.image(row).mode for row in range(4)} == {"RGB"}
        sizes.append((cache.folder / PIXELS).stat().st_size - 1)  # less the byte at the end
    assert sizes[0] == 3 * sizes[1] > 0


def test_each_image_is_decoded_once(photos: Path) -> None:
    expected = everything(load(photos))
    for path in photos.rglob("*.*"):
        facts = path.stat()
        path.write_bytes(bytes(facts.st_size))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert torch.equal(everything(load(photos)), expected)


def test_a_changed_image_makes_a_new_cache(photos: Path) -> None:
    before = everything(load(photos))
    Image.new("RGB", (40, 40), "red").save(photos / "train" / "blue" / "0.png")
    assert not torch.equal(everything(load(photos)), before)


def test_a_set_that_does_not_fit_is_decoded_each_time(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load(photos, cache_gb=1e-6)
    assert "more than data.cache_gb = 1e-06; images are decoded" in capsys.readouterr().err
    assert not caches()
    assert torch.equal(everything(data), everything(load(photos)))


def test_the_least_recently_used_cache_makes_room(photos: Path) -> None:
    load(photos, size=32)
    (first,) = caches()
    room = 1.5e-9 * sum(file.stat().st_size for file in first.iterdir())
    os.utime(first, (0, 0))
    load(photos, size=33, cache_gb=room)
    assert caches() != [first]
    assert len(caches()) == 1


def test_a_cache_that_cannot_be_written_is_not_needed(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = everything(load(photos, cache=False))
    cache_folder().mkdir(exist_ok=True)
    (cache_folder() / FOLDER).write_text("a file in its place")
    assert torch.equal(everything(load(photos)), expected)
    assert "cannot be written" in capsys.readouterr().err


def test_what_a_killed_process_left_is_removed(photos: Path) -> None:
    folder = cache_folder() / FOLDER
    left, in_use = folder / "left-3.partial", folder / "used-3.partial"
    for path in (left, in_use):
        path.mkdir(parents=True)
        (path / PIXELS).write_bytes(bytes(1000))
    with FileLock(in_use.with_suffix(".lock")):
        load(photos)
    assert not left.exists()
    assert in_use.exists()
    assert len([path for path in caches() if path != in_use]) == 1


def test_a_truncated_cache_is_made_again(photos: Path) -> None:
    expected = everything(load(photos))
    (cache,) = caches()
    with (cache / PIXELS).open("r+b") as file:
        file.truncate(1000)
    assert torch.equal(everything(load(photos)), expected)


def test_a_large_jpeg_is_scored_as_if_it_were_decoded_in_full(photos: Path) -> None:
    """Its draft has four times the pixels that are kept, so hardly a pixel differs."""
    large, name = photos / "large", "0.jpg"
    image = Image.fromarray(load_sample_images().images[0]).resize((2560, 1708))
    for split in ("train", "test"):
        for label in ("a", "b"):
            (large / split / label).mkdir(parents=True)
            for number in range(2):
                image.save(large / split / label / f"{number}.jpg", quality=95)
    data = load(large, size=128)
    found = next(iter(data.test.batches(1))).images[0].numpy().astype(int)
    side = data.preprocess.resize
    width = round(2560 * side / 1708)
    full = Image.open(large / "test" / "a" / name)
    resized = full.resize((width, side), Image.Resampling.BILINEAR)
    left, top = (width - 128) // 2, (side - 128) // 2
    expected = np.asarray(resized.crop((left, top, left + 128, top + 128))).transpose(2, 0, 1)
    assert np.abs(found - expected).mean() < 1
