"""int8: quantized modules of our own, placed where ONNX Runtime fuses them."""
