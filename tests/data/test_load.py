"""Sets that are odd in size or content, as they are read; and one that is trained on."""

import re
from pathlib import Path
from typing import Literal

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from compress.cli.main import main
from compress.data.config import DataConfig
from compress.data.load import load_data
from compress.data.splits import TensorSplit, as_numpy, calibration_order
from compress.errors import CompressError, DataError
from tests.data.helpers import load, write_set


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
    with pytest.raises(DataError, match="test/new is a class that is missing from train/; add"):
        load(root)


def test_hundreds_of_classes_are_listed_in_few_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = {f"class-{number:04}": 2 for number in range(300)}
    root = write_set(tmp_path, {"train": classes, "test": {"class-0000": 1}})
    data = load(root)
    assert (len(data.class_names), len(data.train), len(data.validation)) == (300, 300, 300)
    told = capsys.readouterr().err
    assert "test/ has no images of: class-0001, class-0002" in told
    assert "and 294 more" in told
    assert len(told) < 1000


def test_images_of_any_size_and_empty_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path, {"train": {"a": 8, "b": 8}, "test": {"a": 2, "b": 2}})
    Image.new("RGB", (1, 1), "red").save(root / "train/a/one.png")
    Image.new("RGB", (4000, 1000), "red").save(root / "train/a/large.png")
    (root / "train/b/empty.png").write_bytes(b"")
    data = load(root)
    assert len(data.train) + len(data.validation) == 18
    assert "1 unreadable image skipped" in capsys.readouterr().err
    batch = next(iter(data.train.batches(20)))
    assert batch.images.shape[1:] == (3, 16, 16)


def test_a_set_whose_classes_differ_in_size_is_scored_by_class_too(tmp_path: Path) -> None:
    counts = {"train": {"a": 40, "b": 2}, "val": {"a": 9, "b": 1}, "test": {"a": 9, "b": 1}}
    root = write_set(tmp_path / "set", counts)
    card, run = tmp_path / "tiny.toml", tmp_path / "run"
    network = 'architecture = "simple_cnn"\narguments = { widths = [8], hidden = 8 }\n'
    card.write_text(f"[teacher]\n{network}[student]\n{network}")
    settings = ("data.size=16", "teacher.train.min_steps=2", "measure.rounds=5")
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["run", str(card), "--pipeline", "smoke", "--data", f"imagefolder:{root}"]
    result = CliRunner().invoke(main, [*command, "--until", "teacher", "--out", str(run), *options])
    assert result.exit_code == 0, result.output
    assert "balanced top-1 (mean over classes): teacher" in " ".join(result.output.split())
    assert "balanced top-1" in (run / "0-teacher" / "report.md").read_text()
    result = CliRunner().invoke(main, ["evaluate", str(run / "0-teacher")])
    assert "balanced (mean over classes)" in result.output


def test_folders_are_resized_as_imagenet_models_are_scored(tmp_path: Path) -> None:
    two = {"a": 2, "b": 2}
    root = write_set(tmp_path, {"train": two, "val": two, "test": two})
    preprocess = load_data(f"imagefolder:{root}", DataConfig(), seed=0).preprocess
    assert (preprocess.size, preprocess.resize, preprocess.channels) == (224, 256, 3)
    assert preprocess.mean == (0.485, 0.456, 0.406)
    assert preprocess.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(("flip", "flipped"), [("auto", False), ("on", True), ("off", False)])
def test_digits_are_mirrored_only_on_demand(
    flip: Literal["auto", "on", "off"], flipped: bool
) -> None:
    data = load_data("digits", DataConfig(flip=flip), seed=0)
    assert isinstance(data.train, TensorSplit)
    assert data.train.augmentation.flip == flipped
    assert (data.preprocess.size, len(data.class_names)) == (16, 10)
    assert (len(data.test), len(data.train) + len(data.validation)) == (359, 1438)


def test_fingerprints_change_with_what_they_cover() -> None:
    base = load_data("digits", DataConfig(), seed=0)
    threads = load_data("digits", DataConfig(threads=3), seed=0)
    shifted = load_data("digits", DataConfig(shift=2), seed=0)
    other = load_data("digits", DataConfig(), seed=1)
    assert threads.fingerprint == base.fingerprint
    assert len({one.fingerprint for one in (base, shifted, other)}) == 3
    assert shifted.split_fingerprint == base.split_fingerprint
    assert len({base.split_fingerprint, other.split_fingerprint}) == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digit", "did you mean digits?"), (".", "did you mean imagefolder:.?")],
)
def test_an_unknown_data_set_is_explained(name: str, hint: str) -> None:
    with pytest.raises(CompressError, match=re.escape(hint)):
        load_data(name, DataConfig(), seed=0)


def test_calibration_images_are_drawn_by_seed() -> None:
    data = load_data("digits", DataConfig(), seed=0)
    order = calibration_order(data.train, 5, seed=3)
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(3))
    assert order.tolist() == drawn[:5].tolist()
    assert len(calibration_order(data.test, 10_000, seed=0)) == 359
    array = as_numpy(data.test.images[:, :, ::2])  # type: ignore[attr-defined]
    assert (array.flags.c_contiguous, array.shape) == (True, (359, 1, 8, 16))
