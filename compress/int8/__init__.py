"""int8 networks: quantized modules, inserted where ONNX Runtime fuses them into integer kernels."""
