"""Helpers to inspect and edit a network's graph."""

import torch
from torch import Tensor, fx, nn

from compress.int8.fake_quantize import Mode
from compress.int8.layer import Layer
from compress.int8.quantizer import ActivationQuantizer

aten = torch.ops.aten
NORMALIZE = "normalize"
"""Name of the module that receives the images."""


def layers_of(model: fx.GraphModule) -> dict[str, Layer]:
    """Returns all layers, float and int8, by name and in execution order."""
    layers = ((str(node.target), layer_of(model, node)) for node in model.graph.nodes)
    return {name: layer for name, layer in layers if layer is not None}


def quantizers_of(model: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    """Returns all activation quantizers by name, in execution order."""
    modules = ((str(node.target), module_of(model, node)) for node in model.graph.nodes)
    return {name: module for name, module in modules if isinstance(module, ActivationQuantizer)}


def set_mode(model: fx.GraphModule, mode: Mode) -> None:
    """Switches all layers and quantizers."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | Layer):
            module.mode = mode


def module_of(model: fx.GraphModule, node: object) -> nn.Module | None:
    """Returns the module that a node calls, None for any other node."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return model.get_submodule(str(node.target))
    return None


def layer_of(model: fx.GraphModule, node: object) -> Layer | None:
    """Returns the layer that a node calls, None for any other node."""
    module = module_of(model, node)
    return module if isinstance(module, Layer) else None


def tensor_of(model: fx.GraphModule, node: object) -> Tensor | None:
    """Returns the parameter or constant that a node reads, None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    parent, _, name = str(node.target).rpartition(".")
    tensor = getattr(model.get_submodule(parent), name)
    return tensor.detach() if isinstance(tensor, Tensor) else None


def shape_of(node: fx.Node) -> torch.Size | None:
    """Returns the shape of a node's tensor, None if its value is not a tensor."""
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else None


def only_reader(node: fx.Node) -> fx.Node | None:
    """Returns the one node that reads a value, None if there are none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def insert_call(
    model: fx.GraphModule, after: fx.Node, target: object, args: tuple[object, ...]
) -> fx.Node:
    """Inserts a call to an ATen operator, or to the named submodule, with `after`'s metadata."""
    with model.graph.inserting_after(after):
        if isinstance(target, str):
            node = model.graph.call_module(target, args)  # type: ignore[arg-type]
        else:
            node = model.graph.call_function(target, args)  # type: ignore[arg-type]
    node.meta = dict(after.meta)
    return node


def substitute(model: fx.GraphModule, old: fx.Node, new: fx.Node) -> None:
    """Makes all readers of `old` read `new`, and removes `old`."""
    old.replace_all_uses_with(new)
    model.graph.erase_node(old)


def set_module(model: fx.GraphModule, name: str, module: nn.Module | nn.Parameter) -> None:
    """Registers a module or parameter under a dotted name; missing parents are created."""
    *parents, attribute = name.split(".")
    owner: nn.Module = model
    for parent in parents:
        if not hasattr(owner, parent):
            owner.add_module(parent, nn.Module())
        owner = getattr(owner, parent)
    setattr(owner, attribute, module)


def clean(model: fx.GraphModule) -> None:
    """Removes dead code and unused modules, and regenerates the graph's Python code."""
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.recompile()
