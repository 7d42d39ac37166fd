"""Export from torch to ONNX, including the preprocessing."""

from compress import make_callable

make_callable(__name__)
