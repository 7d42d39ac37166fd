"""ONNX operators that quantized modules emit while torch.onnx exports them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.onnx_file import CONTRIB, OPSET


def emit(
    operator: str,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt],
    **attributes: float,
) -> Tensor:
    """Returns a tensor that the exporter writes as the given ONNX operator."""
    version = 1 if operator.startswith(CONTRIB) else OPSET
    return torch.onnx.ops.symbolic(
        operator, inputs, dict(attributes), dtype=dtype, shape=shape, version=version
    )


def quantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Emits a QuantizeLinear with one scale for the tensor; uint8."""
    return emit("QuantizeLinear", (x, scale, zero_point), torch.uint8, x.shape)


def dequantize_linear(levels: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Emits a DequantizeLinear with one scale for the tensor; float32."""
    return emit("DequantizeLinear", (levels, scale, zero_point), torch.float32, levels.shape)


def dequantize_channels(levels: Tensor, *qparams: Tensor) -> Tensor:
    """Emits a DequantizeLinear with a scale (and a zero point) per output channel; float32."""
    return emit("DequantizeLinear", (levels, *qparams), torch.float32, levels.shape, axis=0)
