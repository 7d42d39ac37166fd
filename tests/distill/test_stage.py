"""Stage distill on its own."""

from pathlib import Path

import pytest
import torch

from compress.checkpoint import NewNetwork, Product
from compress.data.dataset import Data
from compress.distill.config import DistillConfig
from compress.distill.result import DistillResult
from compress.distill.stage import run
from compress.kd.config import KDConfig
from compress.kd.context import Context
from compress.kd.teachers import checkpoint_teacher
from compress.measure.config import MeasureConfig
from compress.train.config import TrainConfig
from tests.conftest import saved, student_spec

CONFIG = DistillConfig(
    kd=KDConfig(alpha=0.25, soft_loss="dist"),
    train=TrainConfig(epochs=1, min_steps=0, batch_size=256, precision="fp32"),
)


def distilled(data: Data, folder: Path, seed: int) -> Product:
    folder.mkdir()
    teacher = saved(folder / "teacher", student_spec(data), data)
    context = Context(
        data=data,
        seed=seed,
        measure=MeasureConfig(),
        folder=folder,
        store=folder / "store",
        teachers=(checkpoint_teacher(teacher, weight=2.5),),
    )
    torch.seed()  # earlier random draws must not matter
    with pytest.MonkeyPatch.context() as patch:  # the teacher's precision is not to be timed
        patch.setattr("compress.kd.teachers.choose_precision", lambda *_, **__: "fp32")
        return run(NewNetwork(spec=student_spec(data)), CONFIG, context)


@pytest.fixture(scope="module")
def product(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Product:
    return distilled(digits, tmp_path_factory.mktemp("distill") / "run", seed=1)


def test_the_product_is_the_trained_student(digits: Data, product: Product) -> None:
    assert product.spec == student_spec(digits)
    assert product.model.training is False
    result = product.result
    assert isinstance(result, DistillResult)
    assert result.epochs == 1
    assert result.loss == (
        "0.25 dist (temperature 4) + 0.75 labels; stored teacher logits, 1 view per image"
    )
    (teacher,) = result.teachers
    assert teacher.endswith("teacher (weight 2.5)")
    assert result.alone is None


def test_the_seed_decides_initialization_and_training(
    digits: Data, tmp_path: Path, product: Product
) -> None:
    weights = [
        next(distilled(digits, tmp_path / str(seed), seed).model.parameters()) for seed in (1, 2)
    ]
    first = next(product.model.parameters())
    assert [torch.equal(first, weight) for weight in weights] == [True, False]
