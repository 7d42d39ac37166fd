"""The yardstick: accuracy, size, MACs and latency of the ONNX file in ONNX Runtime."""
