"""Stage teacher on its own."""

from pathlib import Path

import pytest
import torch

from compress.architectures.build import build
from compress.checkpoint import load_checkpoint
from compress.data.load import Data
from compress.errors import CompressError
from compress.int8.restore import load_model
from compress.kd.context import Context, Product
from compress.kd.teachers import checkpoint_teacher
from compress.measure.config import MeasureConfig
from compress.teacher.config import TeacherConfig
from compress.teacher.stage import UNTRAINED, run, take
from compress.train.config import TrainConfig
from tests.conftest import student_spec

ONE_EPOCH = TeacherConfig(
    train=TrainConfig(epochs=1, min_steps=0, batch_size=256, precision="fp32")
)
ZERO_EPOCHS = TeacherConfig(train=TrainConfig(epochs=0))


@pytest.fixture
def context(digits: Data, tmp_path: Path) -> Context:
    return Context(
        data=digits, seed=4, measure=MeasureConfig(), folder=tmp_path, store=tmp_path, teachers=()
    )


def same(first: Product, second: Product) -> bool:
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_seed_decides_the_weights(context: Context, tmp_path: Path) -> None:
    spec = student_spec(context.data)
    first = run(spec, "", ZERO_EPOCHS, context)
    torch.manual_seed(99)
    assert same(first, run(spec, "", ZERO_EPOCHS, context)) is True
    trained = run(spec, "", ONE_EPOCH, context)
    assert same(first, trained) is False
    assert trained.details == {"epochs": 1, "findings": []}
    assert (tmp_path / "history.jsonl").is_file()


def test_zero_epochs_take_weights_as_they_are(context: Context, tmp_path: Path) -> None:
    spec = student_spec(context.data)
    torch.manual_seed(7)
    network = build(spec).network
    torch.save(network.state_dict(), tmp_path / "ours.pth")
    product = run(spec, str(tmp_path / "ours.pth"), ZERO_EPOCHS, context)
    taken = product.model.network.state_dict()  # type: ignore[union-attr]
    torch.testing.assert_close(taken, network.state_dict(), rtol=0, atol=0)
    assert product.details == {"epochs": 0, "findings": []}


def test_random_weights_without_training_are_reported(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    product = run(student_spec(context.data), "", ZERO_EPOCHS, context)
    assert product.details["findings"] == [UNTRAINED]
    assert UNTRAINED in capsys.readouterr().err


def test_weights_of_another_shape_need_training(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, weights = student_spec(context.data), tmp_path / "ours.pth"
    state = build(spec).network.state_dict()
    last = list(state)[-1]
    state[last] = torch.zeros(7)
    torch.save(state, weights)
    with pytest.raises(CompressError, match="does not fit the network .* set teacher.train.epochs"):
        run(spec, str(weights), ZERO_EPOCHS, context)
    run(spec, str(weights), ONE_EPOCH, context)
    assert f"initialized at random, not from {weights}: {last}" in capsys.readouterr().err


def test_a_trained_teacher_is_taken_unchanged(finished_run: Path) -> None:
    checkpoint = load_checkpoint(finished_run / "2-prune")
    product = take(checkpoint_teacher(checkpoint))
    expected = load_model(checkpoint).state_dict()
    torch.testing.assert_close(product.model.state_dict(), expected, rtol=0, atol=0)
    assert product.spec == checkpoint.spec
    assert product.shapes == checkpoint.description.shapes
    assert product.removed == checkpoint.description.removed
    assert product.details == {"taken_from": str(finished_run / "2-prune")}
