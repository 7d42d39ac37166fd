"""int8: quantised modules of our own, placed where ONNX Runtime fuses them."""
