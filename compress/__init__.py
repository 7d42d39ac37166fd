"""Turn an image classifier into a small, fast ONNX file, and prove every step."""

__version__ = "0.1.0"
