"""The network as a graph of ATen operators, in which quantized modules can be placed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from compress.architectures.build import Classifier, Normalize
from compress.errors import CompressError
from compress.int8.layer import Layer

aten = torch.ops.aten
IMAGES, NORMALIZE = "images", "normalize"
CONV_DEFAULTS = ([1, 1], [0, 0], [1, 1], 1)
"""Stride, padding, dilation and groups of aten.conv2d."""


def trace(model: Classifier) -> fx.GraphModule:
    """Returns a copy of the model as a graph of functional ATen operators.

    `torch.export` sees every spelling of an operator (module, function, method, in place) as the
    same ATen operator, and traces what can be exported to ONNX at all. Convolutions and linear
    layers become `Layer` modules that keep their names; the normalization is a call of its module.

    Args:
        model: takes images.

    Raises:
        CompressError: the network depends on its data in a way that cannot be traced.
    """
    model = copy.deepcopy(model).eval().requires_grad_()
    normalize = model.normalize
    assert isinstance(normalize, Normalize)
    side, channels = normalize.preprocess.size, normalize.preprocess.channels
    example = torch.zeros(2, channels, side, side)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about the exporter's own internals
            batch = torch.export.Dim("batch")
            program = torch.export.export(model.network, (example,), dynamic_shapes=({0: batch},))
            # Without in-place operators, so that a value can be replaced wherever it is read.
            exported = program.run_decompositions({}).module(check_guards=False)
    except (RuntimeError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:
        reason = str(error).strip().splitlines()[0]
        raise CompressError(f"{type(model.network).__name__} cannot be traced: {reason}") from error
    assert isinstance(exported, fx.GraphModule)
    # A fresh graph: the exported one checks its inputs and refuses train() and eval().
    graph = fx.Graph()
    outputs = graph.graph_copy(exported.graph, {})
    assert isinstance(outputs, list | tuple)
    graph.output(outputs[0])
    traced = fx.GraphModule(exported, graph)
    _simplify(traced)
    _collect_layers(traced)
    _insert_normalize(traced, normalize)
    clean(traced)
    return traced


def clean(traced: fx.GraphModule) -> None:
    """Removes what nobody reads and writes the graph's Python code anew."""
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()


def module_of(traced: fx.GraphModule, node: object) -> nn.Module | None:
    """Returns the module that a node calls, None for any other node."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return traced.get_submodule(str(node.target))
    return None


def layer_of(traced: fx.GraphModule, node: object) -> Layer | None:
    """Returns the layer that a node calls, None for any other node."""
    module = module_of(traced, node)
    return module if isinstance(module, Layer) else None


def tensor_of(traced: fx.GraphModule, node: object) -> Tensor | None:
    """Returns the parameter or constant that a node stands for, None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    parent, _, name = str(node.target).rpartition(".")
    tensor = getattr(traced.get_submodule(parent), name)
    return tensor.detach() if isinstance(tensor, Tensor) else None


def shape_of(node: fx.Node) -> torch.Size | None:
    """Returns the shape of a node's tensor, None if it holds something else."""
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else None


def only_reader(node: fx.Node) -> fx.Node | None:
    """Returns the one node that reads a value, None if there are none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def insert_call(
    traced: fx.GraphModule, after: fx.Node, target: object, args: tuple[object, ...]
) -> fx.Node:
    """Inserts a call of an ATen operator, or of the submodule named, with `after`'s metadata."""
    with traced.graph.inserting_after(after):
        if isinstance(target, str):
            node = traced.graph.call_module(target, args)  # type: ignore[arg-type]
        else:
            node = traced.graph.call_function(target, args)  # type: ignore[arg-type]
    node.meta = dict(after.meta)
    return node


def substitute(traced: fx.GraphModule, old: fx.Node, new: fx.Node) -> None:
    """Lets everyone who reads `old` read `new`, and removes `old`."""
    old.replace_all_uses_with(new)
    traced.graph.erase_node(old)


def set_module(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Puts a module at a dotted name, whose parents are made where they are missing."""
    *parents, attribute = name.split(".")
    place: nn.Module = traced
    for parent in parents:
        if not hasattr(place, parent):
            place.add_module(parent, nn.Module())
        place = getattr(place, parent)
    setattr(place, attribute, module)


def _simplify(traced: fx.GraphModule) -> None:
    """Reduces spellings: one reshape, no copies, means that keep their dimensions."""
    for node in list(traced.graph.nodes):
        if node.target is aten.clone.default:
            substitute(traced, node, node.args[0])
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            # Without the copies a tensor may not be contiguous, which a view would need.
            node.target = aten.reshape.default
        elif node.target is aten.mean.dim and not (len(node.args) > 2 and node.args[2]):
            shape = shape_of(node)
            assert shape is not None
            node.args = (*node.args[:2], True)
            flat = [-1, *(int(size) for size in shape[1:])]
            reshaped = insert_call(traced, node, aten.reshape.default, (node, flat))
            node.replace_all_uses_with(
                reshaped, delete_user_cb=lambda user, new=reshaped: user is not new
            )
            node.meta["val"] = node.meta["val"].reshape(*shape, 1, 1)


def _collect_layers(traced: fx.GraphModule) -> None:
    """Replaces convolutions and linear layers by modules under the names of their parameters."""
    taken: set[str] = set()
    for node in list(traced.graph.nodes):
        if node.target not in (aten.conv2d.default, aten.linear.default):
            continue
        weight = tensor_of(traced, node.args[1])
        bias = tensor_of(traced, node.args[2]) if len(node.args) > 2 else None
        has_bias = len(node.args) > 2 and node.args[2] is not None
        if weight is None or (has_bias and bias is None):
            continue  # a computed weight
        name = str(node.args[1].target).removesuffix("weight").strip("._") or node.name
        while name in taken:  # one layer called twice is two layers
            name += "_again"
        taken.add(name)
        if node.target is aten.conv2d.default:
            given = node.args[3:]
            geometry = (*given, *CONV_DEFAULTS[len(given) :])
            layer = Layer.conv(weight, bias, geometry)
            new = _insert_layer(traced, node, name, layer, node.args[0])
        else:
            new = _insert_linear(traced, node, name, Layer.linear(weight, bias))
        substitute(traced, node, new)


def _insert_layer(
    traced: fx.GraphModule, node: fx.Node, name: str, layer: Layer, source: fx.Node
) -> fx.Node:
    set_module(traced, name, layer)
    return insert_call(traced, node, name, (source,))


def _insert_linear(traced: fx.GraphModule, node: fx.Node, name: str, layer: Layer) -> fx.Node:
    """Flattens all leading dimensions: ONNX Runtime's int8 Gemm takes matrices only."""
    shape, source = shape_of(node), node.args[0]
    assert shape is not None
    assert isinstance(source, fx.Node)
    if len(shape) == 2:
        return _insert_layer(traced, node, name, layer, source)
    value = node.meta["val"]
    inputs = insert_call(
        traced, source, aten.reshape.default, (source, [-1, layer.weight.shape[1]])
    )
    outputs = _insert_layer(traced, node, name, layer, inputs)
    inputs.meta["val"] = source.meta["val"].flatten(0, -2)
    outputs.meta["val"] = value.flatten(0, -2)
    sizes: Sequence[object] = [-1, *(int(size) for size in shape[1:])]
    return insert_call(traced, outputs, aten.reshape.default, (outputs, sizes))


def _insert_normalize(traced: fx.GraphModule, normalize: Normalize) -> None:
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    image.target = image.name = IMAGES
    set_module(traced, NORMALIZE, normalize)
    normalized = insert_call(traced, image, NORMALIZE, (image,))
    # Who asks for the batch's size may ask the image itself.
    image.replace_all_uses_with(
        normalized,
        delete_user_cb=lambda user: user is not normalized and user.target is not aten.sym_size.int,
    )
