"""Stage teacher on its own."""

from pathlib import Path

import pytest
import torch

from compress.architectures.build import build
from compress.checkpoint import NewNetwork, Product, load_checkpoint
from compress.data.dataset import Data
from compress.errors import CompressError
from compress.int8.restore import load_model
from compress.kd.context import Context
from compress.measure.config import MeasureConfig
from compress.teacher.config import TeacherConfig
from compress.teacher.result import TeacherResult
from compress.teacher.stage import UNTRAINED, run
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
    first = run(NewNetwork(spec=spec), ZERO_EPOCHS, context)
    torch.manual_seed(99)
    assert same(first, run(NewNetwork(spec=spec), ZERO_EPOCHS, context)) is True
    trained = run(NewNetwork(spec=spec), ONE_EPOCH, context)
    assert same(first, trained) is False
    assert (trained.result, trained.findings) == (TeacherResult(epochs=1), ())
    assert (tmp_path / "history.jsonl").is_file()


def test_zero_epochs_take_weights_as_they_are(context: Context, tmp_path: Path) -> None:
    spec = student_spec(context.data)
    torch.manual_seed(7)
    network = build(spec).network
    torch.save(network.state_dict(), tmp_path / "ours.pth")
    product = run(NewNetwork(spec=spec, weights=str(tmp_path / "ours.pth")), ZERO_EPOCHS, context)
    taken = product.model.network.state_dict()  # type: ignore[union-attr]
    torch.testing.assert_close(taken, network.state_dict(), rtol=0, atol=0)
    assert (product.result, product.findings) == (TeacherResult(epochs=0), ())


def test_random_weights_without_training_are_reported(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    product = run(NewNetwork(spec=student_spec(context.data)), ZERO_EPOCHS, context)
    assert product.findings == (UNTRAINED,)
    assert UNTRAINED in capsys.readouterr().err


def test_weights_of_another_shape_need_training(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, weights = student_spec(context.data), tmp_path / "ours.pth"
    state = build(spec).network.state_dict()
    last = list(state)[-1]
    state[last] = torch.zeros(7)
    torch.save(state, weights)
    with pytest.raises(
        CompressError, match=r"does not fit the network .*, and teacher.train.epochs is 0"
    ):
        run(NewNetwork(spec=spec, weights=str(weights)), ZERO_EPOCHS, context)
    run(NewNetwork(spec=spec, weights=str(weights)), ONE_EPOCH, context)
    assert f"new, not from {weights}: {last}" in capsys.readouterr().err


def test_a_trained_teacher_is_taken_unchanged(finished_run: Path, context: Context) -> None:
    checkpoint = load_checkpoint(finished_run / "2-prune")
    product = run(checkpoint, ONE_EPOCH, context)
    expected = load_model(checkpoint).state_dict()
    torch.testing.assert_close(product.model.state_dict(), expected, rtol=0, atol=0)
    assert product.spec == checkpoint.spec
    assert product.shapes == checkpoint.description.shapes
    assert product.removed == checkpoint.description.removed
    assert product.result == TeacherResult(taken_from=str(finished_run / "2-prune"))
