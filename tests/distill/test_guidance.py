from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.architectures.build import build
from compress.data.load import Data
from compress.data.splits import View
from compress.distill.config import GuidanceConfig
from compress.distill.guidance import guided_loss, stored_answers
from compress.distill.teachers import Voice, checkpoint_teacher, open_teacher
from compress.train.config import TrainConfig
from compress.train.loop import TrainBatch
from tests.conftest import saved, student_spec


def first_batch(data: Data, view: View) -> TrainBatch:
    raw = next(iter(data.train.batches(32, view=view)))
    targets = torch.nn.functional.one_hot(raw.labels, 10).float()
    return TrainBatch(pixels=raw.images.float(), targets=targets, index=raw.index, view=view)


@pytest.fixture
def voices(digits: Data, tmp_path: Path) -> list[Voice]:
    """Two networks that disagree, with weights 3 and 1."""
    return [
        open_teacher(
            checkpoint_teacher(
                saved(tmp_path / str(seed), student_spec(digits), digits, seed=seed), weight=weight
            ),
            digits,
            torch.device("cpu"),
        )
        for seed, weight in ((0, 3.0), (1, 1.0))
    ]


def test_stored_answers_equal_live_ones(digits: Data, tmp_path: Path, voices: list[Voice]) -> None:
    student = build(student_spec(digits)).eval()
    losses = {}
    for views in (0, 2):
        stored = stored_answers(voices, digits, views, seed=3, store=tmp_path / "store")
        loss = guided_loss(voices, stored, GuidanceConfig(views=views), TrainConfig())
        batch = first_batch(digits, View(seed=3, number=1))
        losses[views] = loss(student(batch.pixels), batch).item()
    assert losses[2] == pytest.approx(losses[0], rel=1e-2)  # stored in half precision
    assert len(list((tmp_path / "store").iterdir())) == 4
    again = stored_answers(voices, digits, 2, seed=3, store=tmp_path / "store")
    assert again.seconds > 0  # what it took then, not now


@pytest.mark.parametrize("train", [TrainConfig(mixup=0.2), TrainConfig(first_size=0.5)])
def test_stored_views_refuse_what_changes_the_picture(
    digits: Data, tmp_path: Path, train: TrainConfig, voices: list[Voice]
) -> None:
    stored = stored_answers(voices, digits, 0, seed=0, store=tmp_path)
    with pytest.raises(ValueError, match="set guidance.views = 0"):
        guided_loss(voices, stored, GuidanceConfig(), train)
    guided_loss(voices, stored, replace(GuidanceConfig(), views=0), train)
