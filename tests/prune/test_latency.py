import dataclasses
import itertools
import json
import math
from pathlib import Path

import onnx
import onnx.shape_inference
import onnxruntime as ort
import pytest

from compress.architectures.build import build
from compress.cache import measuring_for
from compress.data.load import Data
from compress.files import cache_folder
from compress.int8.graph import layers_of
from compress.int8.lowering import lower
from compress.measure.cost import count_macs
from compress.measure.profile import Operator, profile
from compress.prune.config import Precision
from compress.prune.latency import LayerCurve, LayerShape, layer_shapes
from compress.prune.table import _layers_file, measure_layers
from tests.conftest import torchvision_spec

CONV = LayerShape(
    kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, size=(7, 7)
)


def test_a_curve_interpolates_along_channels() -> None:
    curve = LayerCurve(
        in_channels=(32, 128),
        out_channels=(16, 64, 128),
        ms=((1.0, 2.0, 4.0), (3.0, 6.0, 12.0)),
        half_in=0.5,
        half_out=0.25,
    )
    assert curve(32, 64) == 2.0
    assert curve(80, 64) == pytest.approx(4.0)
    assert curve(32, 96) == pytest.approx(3.0)
    # 88 lies between 80 and 96, which take 2.5 and 3 ms; half a step saves a quarter of one.
    assert curve(32, 88) == pytest.approx(3.0 - 0.25 * 0.5)
    assert (curve.half_pays(writes=False), curve.half_pays(writes=True)) == (True, False)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_the_layers_macs_are_the_networks(digits: Data, name: str) -> None:
    spec = torchvision_spec(name, digits)
    model = build(spec).eval()
    lowered = lower(model)
    images = next(iter(digits.test.batches(1))).images
    shapes = layer_shapes(lowered, images)
    layers = layers_of(lowered)
    affine = [layer for layer in layers if layer.endswith(".affine")]  # was a BatchNorm
    total = sum(
        shapes[layer].macs(*layers[layer].channels) for layer in shapes if layer not in affine
    )
    assert total == pytest.approx(count_macs(model, spec), rel=1e-6)


@pytest.mark.parametrize("precision", ["int8", "float"])
def test_layers_are_timed_as_the_network_runs_them(precision: Precision) -> None:
    """ONNX Runtime makes one operator of each, integer if the network is."""
    depthwise = LayerShape(
        kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=0, size=(8, 8)
    )
    linear = LayerShape(
        kernel=(0, 0), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, size=(5, 1)
    )
    for shape in (CONV, depthwise, linear):
        model = _layers_file(shape, [(16, 16), (16, 24)], precision)
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(model))
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(cache_folder() / "layers.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options)
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        kinds = [node.op_type for node in nodes if "Conv" in node.op_type or "Gemm" in node.op_type]
        assert len(kinds) == 2
        assert all(kind.startswith("Q") == (precision == "int8") for kind in kinds)


def curve(precision: Precision, width: int) -> LayerCurve:
    return measure_layers(
        {"a": CONV}, {"a": (3, width)}, {"a": (False, True)}, precision=precision, threads=1
    )["a"]


@pytest.mark.parametrize("precision", ["int8", "float"])
def test_the_table_has_a_time_for_each_width_and_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: Precision
) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr("compress.cache.STEADY", math.inf)
    first = curve(precision, 48)
    assert first.in_channels == (3,)
    assert first.out_channels == (8, 16, 24, 32, 40, 48)
    assert all(ms > 0 for row in first.ms for ms in row)
    wider = curve(precision, 56)
    assert wider.ms[0][:5] == first.ms[0][:5]  # only the new widths were measured
    monkeypatch.setattr("compress.prune.table.profile", None)  # would fail if called
    assert curve(precision, 48) == first


def test_layers_measured_in_a_noisy_minute_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half of the repeats take three times as long."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    slower = itertools.cycle([1, 3])

    def noisy(path: Path, *, threads: int) -> list[Operator]:
        times = next(slower)
        found = profile(path, threads=threads)
        return [dataclasses.replace(one, ms=times * one.ms) for one in found]

    monkeypatch.setattr("compress.prune.table.profile", noisy)
    with measuring_for(tmp_path / "stage") as used:
        curve("int8", 24)
    (row,) = used()
    assert row.not_cached == row.count == 3
    (file,) = (tmp_path / "measured").glob("*.json")
    assert json.loads(file.read_text()) == {}
