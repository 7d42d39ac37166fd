"""Sets that are odd in size or content, as they are read; and one that is trained on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from compress.cli.main import main
from compress.data.config import DataConfig
from compress.data.copies import copied_files
from compress.data.load import Data, load_data
from compress.errors import DataError
from compress.log import warn_once


def write_set(root: Path, counts: dict[str, dict[str, int]]) -> Path:
    """Different images of noise, 16 px, by split and class."""
    generator = np.random.default_rng(0)
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.bmp")
    return root


def load(root: Path) -> Data:
    return load_data(f"imagefolder:{root}", DataConfig(size=16), seed=0)


def test_one_image_a_class_is_enough_beside_validation_images(tmp_path: Path) -> None:
    one = {"a": 1, "b": 1}
    data = load(write_set(tmp_path, {"train": one, "val": one, "test": one}))
    assert [len(data.train), len(data.validation), len(data.test)] == [2, 2, 2]


def test_one_image_a_class_cannot_be_split(tmp_path: Path) -> None:
    one = {"a": 1, "b": 1}
    with pytest.raises(DataError, match="none can be held out for validation"):
        load(write_set(tmp_path, {"train": one, "test": one}))


def test_a_class_that_is_tested_and_not_trained_is_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"train": {"a": 2, "b": 2}, "test": {"a": 1, "new": 1}})
    with pytest.raises(DataError, match="test/new is a class that train/ does not have; add"):
        load(root)


def test_two_thousand_classes_are_listed_in_few_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = {f"class-{number:04}": 2 for number in range(2000)}
    root = write_set(tmp_path, {"train": classes, "test": {"class-0000": 1}})
    data = load(root)
    assert (len(data.class_names), len(data.train), len(data.validation)) == (2000, 2000, 2000)
    told = capsys.readouterr().err
    assert "test/ has no image of: class-0001, class-0002" in told
    assert "and 1994 more" in told
    assert len(told) < 1000


def test_images_of_any_size_and_empty_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path, {"train": {"a": 8, "b": 8}, "test": {"a": 2, "b": 2}})
    Image.new("RGB", (1, 1), "red").save(root / "train/a/one.png")
    Image.new("RGB", (8000, 8000), "red").save(root / "train/a/large.png")
    (root / "train/b/empty.png").write_bytes(b"")
    data = load(root)
    assert len(data.train) + len(data.validation) == 18
    assert "1 unreadable image skipped" in capsys.readouterr().err
    batch = next(iter(data.train.batches(20)))
    assert batch.images.shape[1:] == (3, 16, 16)


def test_copies_in_two_splits_are_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    six = {"a": 6, "b": 6}
    root = write_set(tmp_path, {"train": six, "val": six, "test": six})
    load(root)
    assert "byte for byte" not in capsys.readouterr().err
    shutil.copy(root / "train/a/0.bmp", root / "test/a/copy.bmp")
    shutil.copy(root / "train/a/0.bmp", root / "test/b/copy.bmp")
    shutil.copy(root / "val/a/1.bmp", root / "test/a/other.bmp")
    shutil.copy(root / "val/a/2.bmp", root / "train/b/other.bmp")
    for _ in range(2):  # counted, then from the cache
        warn_once.cache_clear()
        load(root)
        told = " ".join(capsys.readouterr().err.split())
        assert "2 of 15 test images also in the training split, byte for byte" in told
        assert "1 of 15 test images also in the validation split" in told
        assert "1 of 12 validation images also in the training split" in told


def test_files_that_begin_or_end_alike_are_no_copies(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("a", "b", "c"))
    first.write_bytes(b"x" + bytes(9000))
    second.write_bytes(b"y" + bytes(9000))
    third.write_bytes(bytes(9000) + b"x")
    splits = {"training": ["a"], "validation": ["b"], "test": ["c"]}
    assert set(copied_files(tmp_path, splits).values()) == {0}
    third.write_bytes(first.read_bytes())
    assert copied_files(tmp_path, splits)["training", "test"] == 1


def test_a_set_whose_classes_differ_in_size_is_scored_by_class_too(tmp_path: Path) -> None:
    counts = {"train": {"a": 40, "b": 2}, "val": {"a": 9, "b": 1}, "test": {"a": 9, "b": 1}}
    root = write_set(tmp_path / "set", counts)
    card, run = tmp_path / "tiny.toml", tmp_path / "run"
    network = 'architecture = "simple_cnn"\narguments = { widths = [8], hidden = 8 }\n'
    card.write_text(f"[teacher]\n{network}[student]\n{network}")
    settings = ("data.size=16", "teacher.train.min_steps=2")
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["run", str(card), "--pipeline", "smoke", "--data", f"imagefolder:{root}"]
    result = CliRunner().invoke(main, [*command, "--until", "teacher", "--out", str(run), *options])
    assert result.exit_code == 0, result.output
    assert "balanced top-1, the mean over classes: teacher" in " ".join(result.output.split())
    assert "balanced top-1" in (run / "0-teacher" / "report.md").read_text()
    result = CliRunner().invoke(main, ["evaluate", str(run / "0-teacher")])
    assert "balanced (mean over classes)" in result.output
