"""Turn an image classifier into a small, fast ONNX file, and measure every stage."""

__version__ = "0.1.0"
