"""Traces a classifier into a graph of ATen operators, ready for quantized modules."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from compress.architectures.build import Classifier, Normalize
from compress.errors import CompressError
from compress.int8.graph import (
    NORMALIZE,
    aten,
    clean,
    insert_call,
    set_module,
    shape_of,
    substitute,
    tensor_of,
)
from compress.int8.layer import Layer

CONV_DEFAULTS = ([1, 1], [0, 0], [1, 1], 1)
"""Stride, padding, dilation, and groups of aten.conv2d."""
FOLDED = "_folded."
"""Prefix of a tensor that was computed from the parameter of that name."""
NAMED_DEFAULTS = (None, [1, 1], "valid", [1, 1], 1)
"""Bias, stride, padding, dilation, and groups of aten.conv2d with padding `same` or `valid`."""


def trace(model: Classifier) -> fx.GraphModule:
    """Returns a copy of the model as a graph of functional ATen operators.

    `torch.export` maps every spelling of an operator (module, function, method, in place) to the
    same ATen operator, and traces everything that can be exported to ONNX. Convolutions and linear
    layers become `Layer` modules with the same names; normalization is a call to its module.

    Raises:
        CompressError: the network's control flow depends on its data and cannot be traced.
    """
    model = copy.deepcopy(model).eval().requires_grad_()
    normalize = model.normalize
    assert isinstance(normalize, Normalize)
    traced = _export(model.network, normalize)
    _simplify(traced)
    _fold_constants(traced)
    _collect_layers(traced)
    _insert_normalize(traced, normalize)
    clean(traced)
    return traced


def _export(network: nn.Module, normalize: Normalize) -> fx.GraphModule:
    side, channels = normalize.preprocess.size, normalize.preprocess.channels
    example = torch.zeros(2, channels, side, side)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about the exporter's own internals
            batch = torch.export.Dim("batch")
            program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
            # Without in-place operators, so that a value can be replaced wherever it is read.
            exported = program.run_decompositions({}).module(check_guards=False)
    except (RuntimeError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:
        reason = str(error).strip().splitlines()[0]
        raise CompressError(f"{type(network).__name__} cannot be traced: {reason}") from error
    assert isinstance(exported, fx.GraphModule)
    # A new graph: the exported one checks its inputs and refuses train() and eval().
    graph = fx.Graph()
    outputs = graph.graph_copy(exported.graph, {})
    assert isinstance(outputs, list | tuple)
    graph.output(outputs[0])
    return fx.GraphModule(exported, graph)


def _simplify(traced: fx.GraphModule) -> None:
    """Normalizes the graph.

    One kind of reshape, no clones or slices of everything, padding in numbers, means that keep
    their dimensions, no assertions of dtypes.
    """
    for node in list(traced.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            traced.graph.erase_node(node)  # from `x.float()`; it would fail in bf16
        elif node.target is aten.clone.default or (
            node.target is aten.slice.Tensor and shape_of(node) == shape_of(node.args[0])
        ):
            substitute(traced, node, node.args[0])
        elif node.target is aten.slice_scatter.default and (
            shape_of(node.args[1]) == shape_of(node.args[0])
        ):
            substitute(traced, node, node.args[1])  # adding in place to a slice of everything
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            # Without the clones a tensor may not be contiguous, which a view would require.
            node.target = aten.reshape.default
        elif node.target is aten.conv2d.padding:
            _write_padding_in_numbers(traced, node)
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


def _fold_constants(traced: fx.GraphModule) -> None:
    """Computes what depends on parameters only, such as standardized weights, once and for all."""
    known: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        tensor = tensor_of(traced, node)
        inputs = node.all_input_nodes
        if tensor is not None:
            known[node] = tensor
        elif node.op == "call_function" and inputs and all(one in known for one in inputs):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    taken: set[str] = set()
    for node, value in known.items():
        is_read = any(user not in known for user in node.users)
        if node.op == "get_attr" or not is_read or not isinstance(value, torch.Tensor):
            continue
        source = node
        while source.op != "get_attr":
            source = source.all_input_nodes[0]
        name = f"{FOLDED}{str(source.target).removeprefix(FOLDED)}"
        while name in taken:
            name = f"{name}_again"
        taken.add(name)
        parameter = nn.Parameter(value, requires_grad=value.is_floating_point())
        set_module(traced, name, parameter)
        with traced.graph.inserting_before(node):
            new = traced.graph.get_attr(name)
        new.meta = dict(node.meta)
        substitute(traced, node, new)
    traced.graph.eliminate_dead_code()


def _write_padding_in_numbers(traced: fx.GraphModule, node: fx.Node) -> None:
    """Replaces a convolution's padding `same` or `valid`; uneven sides become an explicit pad."""
    (source, weight), given = node.args[:2], node.args[2:]
    bias, stride, padding, dilation, groups = given + NAMED_DEFAULTS[len(given) :]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    assert isinstance(dilation, list)
    kernel = shape_of(weight)[2:]  # type: ignore[index]
    same = padding == "same"
    height, width = (same * d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    numbers = [height // 2, width // 2]
    if height % 2 or width % 2:
        pad = [width // 2, width - width // 2, height // 2, height - height // 2]
        value = F.pad(source.meta["val"], pad)
        source = insert_call(traced, source, aten.constant_pad_nd.default, (source, pad))
        source.meta["val"], numbers = value, [0, 0]
    node.target = aten.conv2d.default
    node.args = (source, weight, bias, stride, numbers, dilation, groups)


def _collect_layers(traced: fx.GraphModule) -> None:
    """Replaces convolutions and linear layers with modules named after their parameters."""
    taken: set[str] = set()
    for node in list(traced.graph.nodes):
        if node.target not in (aten.conv2d.default, aten.linear.default):
            continue
        weight = tensor_of(traced, node.args[1])
        bias = tensor_of(traced, node.args[2]) if len(node.args) > 2 else None
        has_bias = len(node.args) > 2 and node.args[2] is not None
        if weight is None or (has_bias and bias is None):
            continue  # a computed weight
        name = str(node.args[1].target).removeprefix(FOLDED).removesuffix("weight")
        name = name.strip("._") or node.name
        while name in taken:  # a layer that is called twice becomes two layers
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
    """Flattens all leading dimensions: ONNX Runtime's int8 Gemm only takes matrices."""
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
    image.target = image.name = "images"
    set_module(traced, NORMALIZE, normalize)
    normalized = insert_call(traced, image, NORMALIZE, (image,))
    # Queries of the batch size may keep reading the images themselves.
    image.replace_all_uses_with(
        normalized,
        delete_user_cb=lambda user: user is not normalized and user.target is not aten.sym_size.int,
    )
