"""From torch to ONNX, with the preprocessing inside."""
