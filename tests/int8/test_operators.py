"""Sums and products must round as ONNX Runtime's kernels do, to the last level."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from compress.int8.operators import AddConstant, BinaryOperator, FloatActivation
from compress.int8.quantizer import QParams

MODEL = """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
binary (uint8[n] a, uint8[n] b) => (uint8[n] y)
<float sa = {{{0}}}, uint8 za = {{{1}}}, float sb = {{{2}}}, uint8 zb = {{{3}}},
 float sy = {{{4}}}, uint8 zy = {{{5}}}>
{{ y = com.microsoft.{6} (a, sa, za, b, sb, zb, sy, zy) }}"""
QPARAMS = [
    (0.05, 0, 0.03, 0, 0.07, 0),
    (0.013, 120, 0.021, 131, 0.029, 127),
    (0.5, 128, 0.25, 64, 0.5, 100),  # many ties
    (0.1, 3, 0.1, 250, 0.004, 30),  # saturates
]


def constant(scale: float, zero_point: int) -> Callable[[], QParams]:
    return lambda: (torch.tensor(scale), torch.tensor(float(zero_point)))


def clamped_levels(values: torch.Tensor, scale: float, zero_point: int) -> np.ndarray:
    """What the quantizer after the operator makes of its values."""
    return np.asarray(torch.clamp(torch.round(values / scale) + zero_point, 0, 255).byte())


@pytest.mark.parametrize("qparams", QPARAMS)
@pytest.mark.parametrize(("kind", "kernel"), [("add", "QLinearAdd"), ("multiply", "QLinearMul")])
def test_a_linked_operator_is_exactly_onnx_runtimes(
    tmp_path: Path, kind: str, kernel: str, qparams: tuple[float, ...]
) -> None:
    path = tmp_path / "binary.onnx"
    onnx.save(onnx.parser.parse_model(MODEL.format(*qparams, kernel)), path)
    left, right = (levels.flatten() for levels in np.indices((256, 256), dtype=np.uint8))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"a": left, "b": right})
    s_left, z_left, s_right, z_right, scale, zero = qparams
    module = BinaryOperator(kind, ("left", "right"))  # type: ignore[arg-type]
    module.link(*(constant(s, int(z)) for s, z in zip(qparams[::2], qparams[1::2], strict=True)))
    values = module(
        (torch.from_numpy(left).float() - z_left) * s_left,
        (torch.from_numpy(right).float() - z_right) * s_right,
    )
    assert (clamped_levels(values, scale, int(zero)) == expected).mean() > 0.9999


def test_before_it_is_linked_an_operator_is_plain_arithmetic() -> None:
    left, right = torch.tensor([1.5, -2.0]), torch.tensor([0.25, 3.0])
    assert BinaryOperator("add", ("a", "b"))(left, right).tolist() == [1.75, 1.0]
    assert BinaryOperator("multiply", ("a", "b"))(left, right).tolist() == [0.375, -6.0]


def test_a_constant_is_added() -> None:
    assert AddConstant(3.0)(torch.tensor([-3.0, 1.0])).tolist() == [0.0, 4.0]


def test_float_activations_are_torchs() -> None:
    x = torch.linspace(-5, 5, 101)
    assert torch.equal(FloatActivation("silu")(x), F.silu(x))
    assert torch.equal(FloatActivation("gelu")(x), F.gelu(x))
