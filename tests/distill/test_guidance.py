from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.architectures.build import build
from compress.data.load import Data
from compress.data.splits import View
from compress.distill.config import GuidanceConfig
from compress.distill.guidance import guided_loss
from compress.train.config import TrainConfig
from compress.train.loop import TrainBatch
from tests.conftest import settled, student_spec


def first_batch(data: Data, view: View) -> TrainBatch:
    raw = next(iter(data.train.batches(32, view=view)))
    targets = torch.nn.functional.one_hot(raw.labels, 10).float()
    return TrainBatch(pixels=raw.images.float(), targets=targets, index=raw.index, view=view)


def test_stored_answers_equal_live_ones(digits: Data, tmp_path: Path) -> None:
    teacher = settled(student_spec(digits), digits.train)
    student = build(student_spec(digits)).eval()
    losses = {}
    for views in (0, 2):
        loss = guided_loss(
            teacher,
            digits,
            GuidanceConfig(views=views),
            TrainConfig(),
            seed=3,
            store=tmp_path / "store",
            teacher_digest="teacher",
        )
        batch = first_batch(digits, View(seed=3, number=1))
        losses[views] = loss(student(batch.pixels), batch).item()
    assert losses[2] == pytest.approx(losses[0], rel=1e-2)  # stored in half precision
    assert len(list((tmp_path / "store").iterdir())) == 2


@pytest.mark.parametrize("train", [TrainConfig(mixup=0.2), TrainConfig(first_size=0.5)])
def test_stored_views_refuse_what_changes_the_picture(
    digits: Data, tmp_path: Path, train: TrainConfig
) -> None:
    teacher = build(student_spec(digits))
    guidance = GuidanceConfig()
    arguments = {"seed": 0, "store": tmp_path, "teacher_digest": "x"}
    with pytest.raises(ValueError, match="set guidance.views = 0"):
        guided_loss(teacher, digits, guidance, train, **arguments)  # type: ignore[arg-type]
    guided_loss(teacher, digits, replace(guidance, views=0), train, **arguments)  # type: ignore[arg-type]
