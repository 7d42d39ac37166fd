from pathlib import Path

import pytest

from compress.data.dataset import Data
from compress.measure.profile import (
    Operator,
    OperatorTime,
    _middle_mean,
    profile,
    summarize,
    times_by_kind,
)
from compress.onnx_file import export_onnx
from tests.conftest import settled, student_spec


def operator(kind: str, *, gives_bytes: bool, ms: float = 1.0) -> Operator:
    return Operator(name=kind, kind=kind, ms=ms, gives_bytes=gives_bytes)


def test_operators_are_counted_by_precision() -> None:
    summary = summarize(
        [
            operator("QLinearConv", gives_bytes=True),
            operator("MaxPool", gives_bytes=True),
            operator("QGemm", gives_bytes=False),
            operator("Conv", gives_bytes=False, ms=3),
            operator("QuantizeLinear", gives_bytes=True),
            operator("DequantizeLinear", gives_bytes=False),
            operator("HardSwish", gives_bytes=False, ms=2),
        ]
    )
    assert (summary.n_int8, summary.n_float, summary.n_conversions) == (3, 2, 2)
    assert summary.gates_share == pytest.approx(100 * 2 / 10)


def test_times_are_summed_by_kind() -> None:
    nodes = [
        *(operator("Add", gives_bytes=False), operator("Conv", gives_bytes=False, ms=4)),
        *(operator("Add", gives_bytes=False, ms=2), operator("MaxPool", gives_bytes=False)),
    ]
    conv, add, pool = times_by_kind(nodes)
    assert conv == OperatorTime(kind="Conv", count=1, ms=4, percent=50)
    assert add == OperatorTime(kind="Add", count=2, ms=3, percent=37.5)
    assert pool == OperatorTime(kind="MaxPool", count=1, ms=1, percent=12.5)


def test_outliers_do_not_change_the_mean() -> None:
    assert _middle_mean([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1000.0]) == 4.5


def test_a_float_file_has_float_operators_only(digits: Data, tmp_path: Path) -> None:
    spec = student_spec(digits, depths=[1])
    export_onnx(settled(spec, digits.train), spec, tmp_path / "m.onnx", digest="", stage="distill")
    operators = profile(tmp_path / "m.onnx", threads=1)
    kinds = {item.kind for item in operators}
    assert any("Conv" in kind for kind in kinds)
    assert all(item.ms > 0 for item in operators)
    summary = summarize(operators)
    assert (summary.n_int8, summary.n_conversions) == (0, 0)
    assert summary.n_float == len(operators)
