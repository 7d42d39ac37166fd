"""Teacher logits on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.data.dataset import Data
from compress.data.splits import View
from compress.kd.stored_logits import stored_logits
from compress.kd.teachers import TeacherModel, mean_logits
from compress.kd.training import ensemble_logits

VIEW = View(seed=3, number=1)


def test_rows_are_the_ensemble_s_logits_in_half_precision(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    stored = stored_logits(teachers, digits, [None, VIEW], store=tmp_path / "store")
    index = torch.tensor([700, 3, 4])
    expected = []
    for number, view in enumerate((None, VIEW)):
        (batch,) = digits.train.batches(3, order=index, view=view)
        expected.append(ensemble_logits(teachers, batch.images.float()))
        torch.testing.assert_close(stored.rows(index, number), expected[-1], atol=0.01, rtol=0.01)
    mean = mean_logits(expected, [1, 1])
    torch.testing.assert_close(stored.rows(index, None), mean, atol=0.01, rtol=0.01)
    assert all(logits.dtype == "float16" for view in stored.views for logits in view)


def test_logits_are_computed_once(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    store = tmp_path / "store"
    first = stored_logits(teachers, digits, [None, VIEW], store=store)
    written = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    assert len(list(store.glob("*.npy"))) == 4  # by view and teacher
    again = stored_logits(teachers, digits, [None, VIEW], store=store)
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == written
    assert again.seconds == first.seconds > 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def shorten(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def widen(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


@pytest.mark.parametrize("damage", [cut, shorten, widen])
def test_damaged_logits_are_recomputed(
    digits: Data,
    tmp_path: Path,
    teachers: list[TeacherModel],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    index, store = torch.arange(50), tmp_path / "store"
    before = stored_logits(teachers, digits, [None], store=store).rows(index, 0)
    for path in store.glob("*.npy"):
        damage(path)
    after = stored_logits(teachers, digits, [None], store=store).rows(index, 0)
    assert torch.equal(before, after)
    assert capsys.readouterr().err.count("recomputing the teacher logits") == 2
