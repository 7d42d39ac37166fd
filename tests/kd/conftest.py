"""Teachers and batches for tests of distillation."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from compress.data.dataset import Data
from compress.data.splits import View
from compress.kd.teachers import TeacherModel, checkpoint_teacher, open_teacher
from compress.train.epoch import TrainBatch
from tests.conftest import saved, student_spec

CPU = torch.device("cpu")


def first_batch(data: Data, view: View) -> TrainBatch:
    """The first 32 training images in a view."""
    raw = next(iter(data.train.batches(32, view=view)))
    return TrainBatch(
        images=raw.images.float(),
        targets=F.one_hot(raw.labels, 10).float(),
        index=raw.index,
        view=view,
        step=0,
        step_of_epoch=0,
    )


@pytest.fixture
def teachers(digits: Data, tmp_path: Path) -> list[TeacherModel]:
    """Two networks that disagree, with weights 3 and 1."""
    return [
        open_teacher(
            checkpoint_teacher(
                saved(tmp_path / str(seed), student_spec(digits), digits, seed=seed), weight=weight
            ),
            digits,
            CPU,
        )
        for seed, weight in ((0, 3.0), (1, 1.0))
    ]
