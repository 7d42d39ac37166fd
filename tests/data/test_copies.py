import shutil
from pathlib import Path

import pytest

from compress.data.copies import copied_files
from compress.log import warn_once
from tests.data.helpers import load, write_set


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
