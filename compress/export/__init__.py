"""Export from torch to ONNX, including the preprocessing."""
