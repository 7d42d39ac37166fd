import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.folders import Folders, read_folders
from compress.data.load import load_data
from compress.data.preprocess import Inputs
from compress.data.splits import UNLABELED, FolderSplit, View
from compress.errors import DataError
from compress.files import cache_folder
from compress.log import warn_once


def write_images(root: Path, splits: dict[str, int], classes: tuple[str, ...]) -> None:
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = generator.integers(20, 60, 2)
                noise = generator.integers(0, 80, (height, width, 3), dtype=np.uint8)
                noise[..., label % 3] += 150
                suffix = ("png", "jpg", "bmp", "webp")[number % 4]
                Image.fromarray(noise).save(folder / f"{number}.{suffix}")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    write_images(root, {"train": 20, "val": 4, "test": 6}, ("blue", "green"))
    return root


def read(root: Path) -> Folders:
    return read_folders(root, Inputs().preprocess(32), DataConfig())


def load(root: Path) -> Data:
    return load_data(f"imagefolder:{root}", DataConfig(size=32), seed=0)


def test_three_splits_are_taken_as_they_are(photos: Path) -> None:
    data = load(photos)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [40, 8, 12]
    assert data.class_names == ("blue", "green")
    batch = next(iter(data.test.batches(12)))
    assert batch.images.shape == (12, 3, 32, 32)
    assert batch.labels.tolist() == [0] * 6 + [1] * 6
    means = batch.images.float().mean((2, 3))
    assert (means.argmax(1) == batch.labels).all()


@pytest.mark.parametrize("missing", ["val", "test"])
def test_without_validation_images_some_are_split_off_train(photos: Path, missing: str) -> None:
    (photos / missing).rename(photos.parent / missing)
    data = load(photos)
    assert len(data.train) + len(data.validation) == 40
    assert len(data.validation) == 4
    assert len(data.test) == {"val": 12, "test": 8}[missing]


def test_threads_and_order_do_not_change_a_view(photos: Path) -> None:
    view = View(seed=0, number=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    images = {}
    for threads in (1, 3):
        config = DataConfig(size=32, threads=threads)
        split = load_data(f"imagefolder:{photos}", config, seed=0).train
        assert isinstance(split, FolderSplit)
        batches = list(split.batches(8, order=order, view=view))
        images[threads] = torch.cat([batch.images for batch in batches])
    assert torch.equal(images[1], images[3])


def test_a_few_unreadable_images_are_left_out_by_name(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = photos / "train" / "blue" / "broken.png"
    broken.write_bytes(b"not an image")
    truncated = photos / "train" / "green" / "1.jpg"
    truncated.write_bytes(truncated.read_bytes()[:200])
    for _ in range(2):  # the second time from the cache
        folders = read(photos)
        assert folders.unreadable == ("train/blue/broken.png", "train/green/1.jpg")
        assert len(folders.splits["train"].names) == 39


def test_unreadable_images_stay_out_after_the_folder_is_moved(photos: Path) -> None:
    broken = photos / "train" / "blue" / "9.jpg"
    broken.write_bytes(b"not an image")
    before = read(photos)
    moved = photos.rename(photos.parent / "elsewhere")
    after = read(moved)
    assert after.unreadable == ("train/blue/9.jpg",)
    assert len(after.splits["train"].names) == 39
    assert after.digest == before.digest


def test_the_digest_says_which_images_are_left_out(photos: Path) -> None:
    """Stored teacher logits are found by it: another image less would shift all after it."""
    listed, digests = photos / "train" / "blue" / "0.png", []
    times, good = listed.stat(), listed.read_bytes()
    for content in (good, bytes(len(good)), good):  # the same size and time
        listed.write_bytes(content)
        os.utime(listed, ns=(times.st_atime_ns, times.st_mtime_ns))
        for cached in (cache_folder() / "folders").glob("*.json"):
            cached.unlink()
        shutil.rmtree(cache_folder() / "images")
        digests.append(read(photos).digest)
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"unreadable": 3}', '{"unreadable": [0]}'])
def test_a_damaged_cache_is_made_again(photos: Path, content: str) -> None:
    (photos / "train" / "blue" / "broken.png").write_bytes(b"not an image")
    before = read(photos)
    for cached in (cache_folder() / "folders").glob("*.json"):
        cached.write_text(content)
    after = read(photos)
    assert after.unreadable == before.unreadable == ("train/blue/broken.png",)
    assert after.digest == before.digest


def test_a_class_without_test_images_is_told(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image in (photos / "test" / "green").iterdir():
        image.unlink()
    assert set(load(photos).test.labels.tolist()) == {0}
    assert "test/ has no images of: green; its top-1 does not cover" in capsys.readouterr().err


def test_more_than_a_tenth_of_unreadable_images_is_an_error(photos: Path) -> None:
    paths = sorted((photos / "train" / "blue").iterdir())
    for path in paths[:6]:
        path.write_bytes(b"not an image")
    assert len(read(photos).unreadable) == 6
    paths[6].write_bytes(b"not an image")
    with pytest.raises(DataError, match="7 of 60 images .* cannot be read"):
        read(photos)


@pytest.mark.parametrize(
    ("folders", "part"),
    [
        ([], "found no folders"),
        (["train/a", "train/b"], "found train"),
        (["blue", "green"], "found blue, green"),
        (["train/a", "test/a"], "has 1 class folder; at least two are needed"),
        (["train/a", "train/b", "test/c"], "a class that is missing from train/"),
        (["train/a", "train/b", "test/a"], "no readable images of: a, b"),
    ],
)
def test_a_wrong_layout_is_explained(tmp_path: Path, folders: list[str], part: str) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert part in str(caught.value)


def test_a_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")


def test_class_folders_in_either_unicode_form_are_one_class(photos: Path) -> None:
    """macOS decomposes names, so archives from there and from Linux disagreed."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (photos / "train" / "blue").rename(photos / "train" / composed)
    (photos / "val" / "blue").rename(photos / "val" / decomposed)
    (photos / "test" / "blue").rename(photos / "test" / composed)
    (photos / "train" / decomposed).mkdir()
    moved = photos / "train" / composed / "0.png"
    moved.rename(photos / "train" / decomposed / "other.png")
    folders = read(photos)
    assert folders.class_names == (composed, "green")
    train = folders.splits["train"]
    assert train.labels.tolist() == [0] * 20 + [1] * 20
    assert f"train/{decomposed}/other.png" in train.names[:20]
    assert folders.splits["val"].labels.tolist() == [0] * 4 + [1] * 4


def test_multi_frame_images_are_named_in_order_once_per_process(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for number in range(7):
        path = photos / "train" / "blue" / f"frames-{number}.gif"
        frames[0].save(path, save_all=True, append_images=frames[1:])
    expected = ", ".join(f"{photos}/train/blue/frames-{number}.gif" for number in range(5))
    warning = f"only the first frame is used in 7 multi-frame images: {expected} and 2 more"
    counts = []
    for _ in range(2):
        load(photos)
        counts.append(capsys.readouterr().err.count(warning))
    assert counts == [1, 0]
    warn_once.cache_clear()
    load(photos)  # from the cache
    assert warning in capsys.readouterr().err


def test_unlabeled_images_are_found_at_any_depth(photos: Path) -> None:
    before = load(photos)
    (photos / "unlabeled" / "2026" / "may").mkdir(parents=True)
    for place, name in enumerate(sorted((photos / "train" / "green").iterdir())[:3]):
        Image.open(name).convert("RGB").rotate(90).save(
            photos / "unlabeled" / ("2026/may" if place else "") / f"{place}.png"
        )
    data = load(photos)
    assert len(data.train) == len(before.train)
    assert data.unlabeled is not None
    assert data.unlabeled.labels.tolist() == [UNLABELED] * 3
    assert data.fingerprint != before.fingerprint
    whole = data.with_unlabeled().train
    (batch,) = whole.batches(3, order=torch.tensor([40, 41, 42]))
    (own,) = data.unlabeled.batches(3)
    assert batch.images.equal(own.images)
    assert batch.labels.tolist() == [UNLABELED] * 3
    assert whole.labels[:40].equal(data.train.labels)


def test_unused_labels_make_unlabeled_images(photos: Path) -> None:
    config = DataConfig(size=32, labels=0.25)
    data = load_data(f"imagefolder:{photos}", config, seed=0)
    assert data.unlabeled is not None
    assert (len(data.train), len(data.unlabeled), len(data.validation)) == (10, 30, 8)
    assert data.train.labels.bincount().tolist() == [5, 5]


def test_a_copy_of_a_test_image_among_unlabeled_ones_is_told(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "unlabeled").mkdir()
    shutil.copy(photos / "test" / "blue" / "0.png", photos / "unlabeled")
    shutil.copy(photos / "train" / "blue" / "4.png", photos / "unlabeled")
    load(photos)
    told = capsys.readouterr().err
    assert "1 of 12 test images also in the unlabeled split" in told
    assert "training images also" not in told
