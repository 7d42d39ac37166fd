import operator

import torch
from torch import fx, nn

from compress.int8.graph import (
    clean,
    insert_call,
    layer_of,
    layers_of,
    module_of,
    only_reader,
    quantizers_of,
    set_mode,
    set_module,
    substitute,
    tensor_of,
)
from compress.int8.layer import Layer
from compress.int8.quantizer import ActivationQuantizer


def example() -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """`quantizer(layer(x)) + x + shift`, and its nodes by name."""
    root = nn.Module()
    root.add_module("layer", Layer.linear(torch.eye(2), None))
    root.add_module("quantizer", ActivationQuantizer())
    root.shift = nn.Parameter(torch.ones(2))
    graph = fx.Graph()
    x = graph.placeholder("x")
    quantized = graph.call_module("quantizer", (graph.call_module("layer", (x,)),))
    total = graph.call_function(operator.add, (quantized, x))
    graph.output(graph.call_function(operator.add, (total, graph.get_attr("shift"))))
    model = fx.GraphModule(root, graph)
    return model, {node.name: node for node in model.graph.nodes}


def test_modules_and_tensors_are_found_by_their_nodes() -> None:
    graph, nodes = example()
    assert layer_of(graph, nodes["layer"]) is graph.get_submodule("layer")
    assert layer_of(graph, nodes["quantizer"]) is None
    assert module_of(graph, nodes["quantizer"]) is graph.get_submodule("quantizer")
    assert module_of(graph, nodes["x"]) is None
    shift = tensor_of(graph, nodes["shift"])
    assert shift is not None
    assert shift.tolist() == [1.0, 1.0]
    assert tensor_of(graph, nodes["layer"]) is None
    assert list(layers_of(graph)) == ["layer"]
    assert list(quantizers_of(graph)) == ["quantizer"]


def test_only_a_single_reader_counts() -> None:
    _, nodes = example()
    assert only_reader(nodes["layer"]) is nodes["quantizer"]
    assert only_reader(nodes["x"]) is None


def test_set_mode_reaches_layers_and_quantizers() -> None:
    graph, _ = example()
    set_mode(graph, "observe")
    modes = [graph.get_submodule(name).mode for name in ("layer", "quantizer")]
    assert modes == ["observe", "observe"]


def test_a_value_is_replaced_and_dead_code_removed() -> None:
    graph, nodes = example()
    doubled = insert_call(graph, nodes["x"], operator.mul, (nodes["x"], 2))
    substitute(graph, nodes["quantizer"], doubled)
    clean(graph)
    x = torch.tensor([1.0, 2.0])
    assert graph(x).tolist() == [4.0, 7.0]
    assert list(layers_of(graph)) == []
    assert not hasattr(graph, "layer")


def test_missing_parents_of_a_module_are_created() -> None:
    graph, _ = example()
    module = nn.ReLU()
    set_module(graph, "blocks.0.activation", module)
    assert graph.get_submodule("blocks.0.activation") is module
