"""Bias correction (Nagel et al., arXiv 1906.04721, section 4.2), on calibration images."""

from torch import Tensor, fx

from compress.int8.layer import Layer
from compress.int8.layerwise import visit_layers


def correct_biases(model: fx.GraphModule, images: Tensor) -> None:
    """Shifts each bias so that the layer's mean output matches the float network's, in place.

    A layer's input contains the errors of the layers before it, which are corrected already.

    Args:
        model: fake-quantized, calibrated.
        images: uint8 `[N, C, H, W]`.
    """
    visit_layers(model, images, _correct, title="bias correction")


def _correct(layer: Layer, quantized_input: Tensor, float_output: Tensor) -> None:
    error = float_output - layer(quantized_input)
    dims = (0, 2, 3) if layer.is_convolution else (0,)
    layer.bias.add_(error.mean(dims))
