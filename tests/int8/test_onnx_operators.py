from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from compress.data.dataset import Data
from compress.int8.onnx_operators import dequantize_channels, dequantize_linear, quantize_linear
from compress.onnx_file import export_onnx
from tests.conftest import student_spec
from tests.int8.helpers import run_file


class _AllOperators(nn.Module):
    """Quantizes and dequantizes the images' means, then multiplies them with int8 weights."""

    levels: Tensor
    scales: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, levels: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("levels", levels)
        self.register_buffer("scales", scales)
        self.register_buffer("scale", torch.tensor(0.7))
        self.register_buffer("zero_point", torch.tensor(9, dtype=torch.uint8))

    def forward(self, images: Tensor) -> Tensor:
        means = images.float().mean((1, 2, 3))[:, None]
        rounded = dequantize_linear(
            quantize_linear(means, self.scale, self.zero_point), self.scale, self.zero_point
        )
        return rounded * dequantize_channels(self.levels, self.scales)[:, 0]


def test_each_function_writes_its_operator(digits: Data, tmp_path: Path) -> None:
    levels = torch.arange(-5, 5, dtype=torch.int8)[:, None]
    scales = torch.linspace(0.1, 1.0, 10)
    model = _AllOperators(levels, scales)
    export_onnx(model, student_spec(digits), tmp_path / "model.onnx", digest="", stage="quantize")
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    operators = Counter(node.op_type for node in nodes)
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (1, 2)
    images = next(iter(digits.test.batches(20))).images
    means = images.float().mean((1, 2, 3))
    rounded = torch.fake_quantize_per_tensor_affine(means, 0.7, 9, 0, 255)
    expected = rounded[:, None] * (levels[:, 0] * scales)
    assert np.allclose(run_file(tmp_path / "model.onnx", images), expected, atol=1e-4)
