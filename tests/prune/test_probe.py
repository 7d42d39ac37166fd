import dataclasses
import math
from pathlib import Path

import onnx
import pytest
import torch

from compress.architectures.build import Classifier
from compress.checkpoint import Checkpoint
from compress.data.dataset import Data
from compress.int8.graph import layers_of
from compress.int8.lowering import lower
from compress.int8.restore import load_model
from compress.kd.context import Context
from compress.measure.config import MeasureConfig
from compress.prune.config import Precision
from compress.prune.groups import find_groups
from compress.prune.probe import Probe, export_to_time
from compress.prune.surgery import keep_channels
from tests.conftest import saved, student_spec


@pytest.fixture(scope="module")
def checkpoint(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    spec = student_spec(digits, width=0.5, depths=[1])
    return saved(tmp_path_factory.mktemp("probe") / "student", spec, digits)


@pytest.fixture
def context(digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("compress.cache.STEADY", math.inf)
    monkeypatch.setattr("compress.prune.probe.ROUNDS", 5)
    return Context(
        data=digits, seed=0, measure=MeasureConfig(), folder=tmp_path, store=tmp_path, teachers=()
    )


def loaded(checkpoint: Checkpoint) -> Classifier:
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    return model


def halved(model: Classifier, context: Context) -> Classifier:
    images = next(iter(context.data.train.batches(1))).images
    groups = find_groups(model.network.eval(), model.normalize(images)).groups
    kept = {group.name: torch.arange(group.channels // 2) for group in groups}
    keep_channels(model.network, groups, kept)
    return model


def test_candidates_are_measured_once(
    checkpoint: Checkpoint, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe(checkpoint, loaded(checkpoint), context, "int8", context.folder)
    assert probe.measure(loaded(checkpoint), ()) is probe.unpruned
    assert set(probe.unpruned.main_ms) == set(layers_of(lower(loaded(checkpoint))))
    assert probe.unpruned.overhead_ms > 0
    assert 0 < probe.unpruned.run_ms < probe.unpruned.ms
    half = probe.measure(halved(loaded(checkpoint), context), ())
    assert half.macs < 0.6 * probe.unpruned.macs
    assert half.size_bytes < probe.unpruned.size_bytes
    monkeypatch.setattr("compress.prune.probe.measure_latency", None)  # fails if called
    again = Probe(checkpoint, loaded(checkpoint), context, "int8", context.folder)
    assert again.unpruned == probe.unpruned
    assert again.measure(halved(loaded(checkpoint), context), ()) == half
    with pytest.raises(TypeError):  # other threads, other latencies
        Probe(
            checkpoint,
            loaded(checkpoint),
            dataclasses.replace(context, measure=MeasureConfig(threads=2)),
            "int8",
            context.folder,
        )


@pytest.mark.parametrize(("precision", "quantized"), [("int8", True), ("float", False)])
def test_the_file_has_the_precision(
    checkpoint: Checkpoint, digits: Data, tmp_path: Path, precision: Precision, quantized: bool
) -> None:
    images = next(iter(digits.train.batches(4))).images
    path = tmp_path / "model.onnx"
    export_to_time(loaded(checkpoint), checkpoint.spec, images, path, precision=precision)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("QuantizeLinear" in kinds) == quantized
