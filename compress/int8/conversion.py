"""Converts a calibrated or trained network, with float weights, to int8."""

from torch import fx

from compress.int8.graph import layer_of, module_of, only_reader, quantizers_of
from compress.int8.operators import BinaryOperator
from compress.int8.quantizer import ActivationQuantizer


def convert(model: fx.GraphModule) -> fx.GraphModule:
    """Fixes all scales and turns the weights of int8 layers into integers, in place.

    Returns:
        The model itself, in eval mode.
    """
    for quantizer in quantizers_of(model).values():
        quantizer.convert()
    for node in model.graph.nodes:
        module, reader = module_of(model, node), module_of(model, only_reader(node))
        layer = layer_of(model, node)
        if layer is not None and layer.input_quantizer is not None:
            layer.convert(model.get_submodule(layer.input_quantizer).scale)  # type: ignore[arg-type]
            if isinstance(reader, ActivationQuantizer):
                layer.output_scale = reader.input_scale
        elif isinstance(module, BinaryOperator):
            left, right = (model.get_submodule(name) for name in module.sources)
            assert isinstance(left, ActivationQuantizer)
            assert isinstance(right, ActivationQuantizer)
            assert isinstance(reader, ActivationQuantizer)
            module.link(left.output_qparams, right.output_qparams, reader.input_qparams)
    return model.eval()
