from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.architectures.build import build
from compress.data.load import Data
from compress.data.splits import View
from compress.kd.config import KDConfig, check_kd, loss_text
from compress.kd.stored_logits import stored_logits
from compress.kd.teachers import TeacherModel, checkpoint_teacher, open_teacher
from compress.kd.training import distillation_loss, ensemble_logits, views_to_store
from compress.train.config import TrainConfig
from compress.train.epoch import TrainBatch
from tests.conftest import saved, student_spec


def first_batch(data: Data, view: View) -> TrainBatch:
    raw = next(iter(data.train.batches(32, view=view)))
    targets = torch.nn.functional.one_hot(raw.labels, 10).float()
    return TrainBatch(
        images=raw.images.float(),
        targets=targets,
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
            torch.device("cpu"),
        )
        for seed, weight in ((0, 3.0), (1, 1.0))
    ]


def test_stored_logits_equal_live_ones(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    student = build(student_spec(digits)).eval()
    losses = {}
    for views in (0, 2):
        kd = KDConfig(n_views=views, fresh_views=False)
        stored_views = views_to_store(kd, seed=3)
        stored = stored_logits(teachers, digits, stored_views, store=tmp_path / "store")
        loss = distillation_loss(teachers, stored, kd, TrainConfig())
        batch = first_batch(digits, View(seed=3, number=1))
        losses[views] = loss(student(batch.images), batch).item()
    assert losses[2] == pytest.approx(losses[0], rel=1e-2)  # stored in half precision
    assert len(list((tmp_path / "store").glob("*.npy"))) == 4
    again = stored_logits(teachers, digits, stored_views, store=tmp_path / "store")
    assert again.seconds > 0  # what it took then, not now
    assert all(logits.dtype == "float16" for view in again.views for logits in view)


def test_damaged_stored_logits_are_computed_again(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel], capsys: pytest.CaptureFixture[str]
) -> None:
    index = torch.arange(50)
    before = stored_logits(teachers, digits, [None], store=tmp_path).rows(index, 0)
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1000])
    after = stored_logits(teachers, digits, [None], store=tmp_path).rows(index, 0)
    assert torch.equal(before, after)
    assert capsys.readouterr().err.count("recomputing the teacher logits") == 2


def test_mean_logits_are_used_for_fresh_views(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    kd = KDConfig(alpha=1.0, temperature=1.0, n_views=2)
    stored = stored_logits(teachers, digits, views_to_store(kd, seed=3), store=tmp_path)
    loss = distillation_loss(teachers, stored, kd, TrainConfig())
    batch = first_batch(digits, View(seed=3, number=7))
    student = torch.randn(32, 10)

    first = ensemble_logits(teachers, next(iter(digits.train.batches(32))).images.float())
    second = ensemble_logits(teachers, first_batch(digits, View(seed=3, number=1)).images)
    teacher = ((first + second) / 2).log_softmax(1)
    by_hand = (teacher.exp() * (teacher - student.log_softmax(1))).sum(1).mean()

    assert not torch.equal(first, second)
    assert loss(student, batch).item() == pytest.approx(by_hand.item(), rel=1e-2)


def test_stored_logits_refuse_mixup(
    digits: Data, tmp_path: Path, teachers: list[TeacherModel]
) -> None:
    stored = stored_logits(teachers, digits, [], store=tmp_path)
    train = TrainConfig(mixup=0.2)
    with pytest.raises(ValueError, match="set kd.n_views = 0"):
        distillation_loss(teachers, stored, KDConfig(), train)
    distillation_loss(teachers, stored, replace(KDConfig(), n_views=0), train)


def test_stored_views_refuse_progressive_resizing() -> None:
    growing = TrainConfig(start_size=0.5)
    check_kd(KDConfig(), growing)
    with pytest.raises(ValueError, match="keep kd.fresh_views on"):
        check_kd(KDConfig(fresh_views=False), growing)


def test_the_report_describes_the_loss() -> None:
    assert loss_text(KDConfig()) == (
        "0.5 kd (temperature 4) + 0.5 labels; stored teacher logits, 1 view per image"
    )
    hints = KDConfig(soft_loss="dist", alpha=0.8, n_views=0, hints="blocks.2:layer3")
    assert loss_text(hints) == (
        "0.8 dist (temperature 4) + 0.2 labels + 1 attention of blocks.2:layer3; live teacher"
    )
