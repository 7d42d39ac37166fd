import dataclasses
import itertools
import json
import math
from pathlib import Path

import onnx
import onnx.shape_inference
import onnxruntime as ort
import pytest

from compress.cache import measuring_for
from compress.files import cache_folder
from compress.int8.layer_profile import LAYER_OPERATORS, original_name
from compress.measure.profile import Operator, profile
from compress.prune.config import Precision
from compress.prune.latency import LayerCurve, LayerShape
from compress.prune.table import _grids, _half_steps, _layers_file, measure_layers

CONV = LayerShape(
    kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, size=(7, 7)
)


def test_grids_are_dense_for_narrow_layers_and_coarse_for_wide_ones() -> None:
    assert _grids(CONV, (3, 48), (False, True)) == ((3,), (8, 16, 24, 32, 40, 48))
    assert _grids(CONV, (64, 512), (True, True)) == (
        (8, 16, 24, 32, 40, 48, 56, 64),
        (16, 128, 256, 384, 512),
    )
    depthwise = dataclasses.replace(CONV, groups=0)
    assert _grids(depthwise, (96, 96), (True, True)) == ((96,), (16, 32, 48, 64, 96))


def test_half_steps_come_with_their_aligned_neighbors() -> None:
    assert _half_steps((8, 16, 24, 32, 40, 48)) == [16, 24, 32, 32, 40, 48]
    assert _half_steps((3,)) == []
    assert _half_steps((16, 128, 256, 384, 512)) == [256, 264, 272]


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


def test_layers_measured_in_a_noisy_minute_have_their_shortest_time_and_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half of the repeats take three times as long."""
    rounds: list[dict[str, float]] = []
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    slower = itertools.cycle([1, 3])

    def noisy(path: Path, *, threads: int) -> list[Operator]:
        times = next(slower)
        found = profile(path, threads=threads)
        found = [dataclasses.replace(one, ms=times * one.ms) for one in found]
        rounds.append(
            {original_name(one.name): one.ms for one in found if one.kind in LAYER_OPERATORS}
        )
        return found

    monkeypatch.setattr("compress.prune.table.profile", noisy)
    with measuring_for(tmp_path / "stage") as used:
        (times,) = curve("int8", 24).ms
    assert times == tuple(min(ms[f"y{number}"] for ms in rounds) for number in range(3))
    (row,) = used()
    assert row.not_cached == row.count == 3
    (file,) = (tmp_path / "measured").glob("*.json")
    assert json.loads(file.read_text()) == {}
