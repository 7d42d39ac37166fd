"""Post-training quantisation: ranges from some images, and done."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from compress.architectures.build import Classifier
from compress.quantize.modules import ActivationQuantizer
from compress.quantize.placement import observe, place_quantizers


@torch.no_grad()
def calibrate(model: Classifier, batches: Iterable[Tensor]) -> fx.GraphModule:
    """Places quantisers and sets their ranges to the least and largest values seen.

    The images stream through; nothing of them is kept, so memory does not grow with their number.

    Args:
        model: float, in eval mode.
        batches: pixels, uint8 `[N, C, H, W]`.

    Returns:
        The quantised model with float master weights, ready to train further or to freeze.
    """
    quantized = place_quantizers(model)
    observe(quantized, on=True)
    for pixels in batches:
        quantized(pixels)
    observe(quantized, on=False)
    for module in quantized.modules():
        if isinstance(module, ActivationQuantizer):
            module.set_range(float(module.low), float(module.high))
    return quantized
