"""Live teachers in int8, and the reasons to keep them in float."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.architectures.build import build
from compress.architectures.sources import give_network
from compress.checkpoint import Checkpoint, Product, load_checkpoint, write_checkpoint
from compress.data.dataset import Data
from compress.kd.config import KDConfig
from compress.kd.context import Context
from compress.kd.int8_teacher import int8_if_better
from compress.kd.teachers import TeacherModel, checkpoint_teacher, open_teacher, read_teachers
from compress.kd.training import train_with_kd
from compress.measure.config import MeasureConfig
from compress.onnx_file import read_facts
from compress.teacher.result import TeacherResult
from compress.train.config import TrainConfig
from compress.train.events import Event
from tests.conftest import student_spec
from tests.int8.test_tracing import _DataDependent

CPU = torch.device("cpu")
SHORT = TrainConfig(epochs=1, min_steps=0, batch_size=128, precision="fp32")


@pytest.fixture
def _any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is timed decides."""
    monkeypatch.setattr("compress.kd.int8_teacher.MIN_SPEEDUP", 0.0)


def opened(checkpoint: Checkpoint, data: Data) -> TeacherModel:
    return open_teacher(checkpoint_teacher(checkpoint), data, CPU)


@pytest.fixture
def in_float(finished_run: Path, digits: Data) -> TeacherModel:
    return opened(load_checkpoint(finished_run / "0-teacher"), digits)


@pytest.mark.usefixtures("_any_speed")
def test_int8_gives_nearly_the_same_logits(
    in_float: TeacherModel, digits: Data, tmp_path: Path
) -> None:
    told: list[Event] = []
    teacher = int8_if_better(in_float, digits, store=tmp_path / "store", on_event=told.append)
    assert teacher.model is None
    assert teacher.precision.startswith("int8, ")
    assert told == [f"logits of 0-teacher: {teacher.precision}"]
    (file,) = (tmp_path / "store").iterdir()
    assert read_facts(file).digest == in_float.source.digest
    images = next(iter(digits.test.batches(200))).images.float()
    ours, expected = teacher.forward(images), in_float.forward(images)
    assert (ours - expected).abs().mean() < 0.05 * expected.std()
    assert (ours.argmax(1) == expected.argmax(1)).float().mean() > 0.97

    written = file.stat().st_mtime_ns
    again = int8_if_better(in_float, digits, store=tmp_path / "store")
    assert torch.equal(again.forward(images), ours)
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "case",
    [
        ("MIN_AGREEMENT", 100.1, "float, since int8 agrees with it on .* 100.1 % are needed"),
        ("MIN_SPEEDUP", math.inf, "float, since int8 is only .*x as fast"),
    ],
)
def test_a_teacher_that_int8_does_not_suit_stays_in_float(
    in_float: TeacherModel,
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, float, str],
) -> None:
    limit, value, reason = case
    monkeypatch.setattr(f"compress.kd.int8_teacher.{limit}", value)
    told: list[Event] = []
    teacher = int8_if_better(in_float, digits, store=tmp_path, on_event=told.append)
    assert teacher.forward is in_float.forward
    assert teacher.model is in_float.model
    assert re.search(reason, teacher.precision)
    assert told == [f"logits of 0-teacher: {teacher.precision}"]


def test_a_teacher_that_cannot_be_quantized_stays_in_float(digits: Data, tmp_path: Path) -> None:
    network = nn.Sequential(_DataDependent(), nn.Linear(256, 10))
    spec = replace(student_spec(digits), architecture=give_network(network), arguments={})
    (tmp_path / "odd").mkdir()
    product = Product(model=build(spec), spec=spec, result=TeacherResult())
    checkpoint = write_checkpoint(tmp_path / "odd", product, stage="teacher", lineage=())
    odd = opened(checkpoint, digits)
    teacher = int8_if_better(odd, digits, store=tmp_path / "store")
    assert teacher.forward is odd.forward
    assert "int8 is not possible: " in teacher.precision
    assert "cannot be traced" in teacher.precision


def test_files_and_int8_checkpoints_are_used_as_they_are(
    finished_run: Path, digits: Data, tmp_path: Path
) -> None:
    file = read_teachers(
        [str(finished_run / "1-distill"), str(finished_run / "1-distill/model.onnx")]
    )[1]
    for teacher in (
        open_teacher(file, digits, CPU),
        opened(load_checkpoint(finished_run / "3-quantize"), digits),
    ):
        assert int8_if_better(teacher, digits, store=tmp_path) is teacher
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_any_speed")
@pytest.mark.parametrize(
    "case",
    [
        (KDConfig(n_views=0), replace(SHORT, mixup=0.2), "int8"),
        (KDConfig(n_views=0), replace(SHORT, start_size=0.8), ""),
        (KDConfig(n_views=0, hints="blocks.0:blocks.0"), SHORT, ""),
        (KDConfig(n_views=1), SHORT, ""),
    ],
    ids=["mixup", "growing images", "hints", "stored logits"],
)
def test_live_teachers_without_need_of_their_network_may_be_int8(
    in_float: TeacherModel,
    digits: Data,
    tmp_path: Path,
    case: tuple[KDConfig, TrainConfig, str],
) -> None:
    kd, schedule, precision = case
    context = Context(
        data=digits,
        seed=0,
        measure=MeasureConfig(),
        folder=tmp_path,
        store=tmp_path / "store",
        teachers=(in_float.source,),
    )
    result = train_with_kd(build(student_spec(digits)), kd, schedule, context, "distill")
    precisions = [text.rpartition("0-teacher: ")[2][:4] for text in result.live_teachers]
    assert precisions == ([precision] if precision else [])
    assert len(list((tmp_path / "store").glob("*-int8.onnx"))) == len(precisions)
