"""Measurements of the ONNX file in ONNX Runtime: accuracy, size, MACs, and latency."""
