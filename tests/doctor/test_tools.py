"""What other tools make of a float model without a fault."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from compress.doctor.examine import examine
from tests.doctor.helpers import float_model, saved


class Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        images = np.random.default_rng(0).random((4, 1, 3, 16, 16), np.float32)
        self.feeds: Iterator[dict[str, np.ndarray]] = iter([{"images": one} for one in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


QDQ, OPERATORS = QuantFormat.QDQ, QuantFormat.QOperator
INT8, UINT8 = QuantType.QInt8, QuantType.QUInt8


@pytest.mark.parametrize(
    ("form", "activations", "symmetric", "expected"),
    [  # beside the saturation of 8-bit weights
        pytest.param(QDQ, UINT8, False, set(), id="recommended"),
        # ONNX Runtime turns int8 into uint8, but a ReLU whose zero point is in the middle stays.
        pytest.param(QDQ, INT8, False, set(), id="the default"),
        pytest.param(QDQ, INT8, True, {"unfused-qdq"}, id="symmetric"),
        pytest.param(OPERATORS, UINT8, False, set(), id="operators"),
        pytest.param(OPERATORS, INT8, False, {"int8-activations"}, id="operators, int8"),
    ],
)
def test_quantize_static(
    form: QuantFormat,
    activations: QuantType,
    symmetric: bool,
    expected: set[str],
    tmp_path: Path,
) -> None:
    quantize_static(
        saved(float_model(), tmp_path),
        tmp_path / "int8.onnx",
        Noise(),
        quant_format=form,
        activation_type=activations,
        weight_type=INT8,
        per_channel=True,
        extra_options={"ActivationSymmetric": symmetric},
    )
    found = {finding.check for finding in examine(tmp_path / "int8.onnx").findings}
    assert found == expected | {"saturation"}


def test_a_layer_excluded_from_quantization_is_quantized_all_the_same(tmp_path: Path) -> None:
    quantize_static(
        saved(float_model(), tmp_path),
        tmp_path / "int8.onnx",
        Noise(),
        quant_format=QDQ,
        activation_type=UINT8,
        weight_type=INT8,
        reduce_range=True,
        nodes_to_exclude=["conv2"],
    )
    (finding,) = examine(tmp_path / "int8.onnx").findings
    assert (finding.check, finding.where) == ("silently-quantized", ("conv2",))


def test_quantize_dynamic(tmp_path: Path) -> None:
    quantize_dynamic(saved(float_model(), tmp_path), tmp_path / "int8.onnx", reduce_range=True)
    assert examine(tmp_path / "int8.onnx").findings == ()
