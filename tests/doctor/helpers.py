"""Small ONNX classifiers, float and int8, without a fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

IMAGE_SCALE, SCALE = 1 / 255, 0.02
DENORMAL = np.uint32(71362).view(np.float32)
"""1e-40, by its bits: training makes a process round it to zero."""
METADATA = {"class_names": "[]", "preprocess": "{}"}
Plant = Callable[[onnx.ModelProto], object]


class Builder:
    """Collects nodes and constants; nodes are named after their outputs."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.random = np.random.default_rng(seed)

    def constant(self, name: str, values: np.ndarray | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def qparams(self, name: str, scale: float) -> list[str]:
        scale_name = self.constant(f"{name}.scale", np.float32(scale))
        return [scale_name, self.constant(f"{name}.zero", np.uint8(0))]

    def requantize(self, value: str, scale: float = SCALE) -> str:
        """A QuantizeLinear and a DequantizeLinear."""
        qparams = self.qparams(value, scale)
        levels = self.node("QuantizeLinear", [value, *qparams], f"{value}.q")
        return self.node("DequantizeLinear", [levels, *qparams], f"{value}.dq")

    def layer(
        self, operator: str, value: str, name: str, shape: tuple[int, ...], **attributes: Any
    ) -> str:
        """A float Conv or Gemm."""
        weight = self.random.normal(0, 0.1, shape).astype(np.float32)
        bias = self.random.normal(0, 0.1, shape[0]).astype(np.float32)
        puts = [self.constant(f"{name}.w", weight), self.constant(f"{name}.b", bias)]
        return self.node(operator, [value, *puts], name, **attributes)

    def int8_layer(
        self, operator: str, value: str, name: str, shape: tuple[int, ...], scale: float,
        **attributes: Any,
    ) -> str:  # fmt: skip
        """A Conv or Gemm with 7-bit weights, one scale a channel, and an int32 bias."""
        levels = self.random.integers(-63, 64, shape).astype(np.int8)
        bias = self.random.integers(-1000, 1000, shape[0]).astype(np.int32)
        scales = self.random.uniform(0.001, 0.002, shape[0]).astype(np.float32)
        weight = [self.constant(f"{name}.w", levels), self.constant(f"{name}.w.scale", scales)]
        weight += [self.constant(f"{name}.w.zero", np.zeros(shape[0], np.int8))]
        given = [self.constant(f"{name}.b", bias)]
        given += [self.constant(f"{name}.b.scale", scales * np.float32(scale))]
        puts = [
            self.node("DequantizeLinear", weight, f"{name}.w.dq", axis=0),
            self.node("DequantizeLinear", given, f"{name}.b.dq", axis=0),
        ]
        return self.node(operator, [value, *puts], name, **attributes)

    def model(self, kind: int, last: str) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("images", kind, ["batch", 3, 16, 16])
        logits = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", 10])
        graph = helper.make_graph(self.nodes, "classifier", [image], [logits], self.constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        helper.set_model_props(proto, METADATA)
        return proto


def float_model(channels: int = 8) -> onnx.ModelProto:
    """Two convolutions, a pool, and a Gemm."""
    build = Builder()
    value = build.layer("Conv", "images", "conv1", (channels, 3, 3, 3), pads=[1, 1, 1, 1])
    value = build.node("Relu", [value], "relu1")
    value = build.layer("Conv", value, "conv2", (16, channels, 3, 3), pads=[1, 1, 1, 1])
    value = build.node("Relu", [value], "relu2")
    value = build.node("GlobalAveragePool", [value], "pool")
    value = build.node("Flatten", [value], "flat")
    last = build.layer("Gemm", value, "logits", (10, 16), transB=1)
    return build.model(TensorProto.FLOAT, last)


def int8_model() -> onnx.ModelProto:
    """The same in QDQ form, with a MaxPool."""
    build = Builder()
    value = build.node("DequantizeLinear", ["images", *build.qparams("images", IMAGE_SCALE)], "x")
    value = build.int8_layer("Conv", value, "conv1", (8, 3, 3, 3), IMAGE_SCALE, pads=[1, 1, 1, 1])
    value = build.requantize(build.node("Relu", [value], "relu1"))
    value = build.node("MaxPool", [value], "max", kernel_shape=[2, 2], strides=[2, 2])
    value = build.requantize(value)
    value = build.int8_layer("Conv", value, "conv2", (16, 8, 3, 3), SCALE, pads=[1, 1, 1, 1])
    value = build.requantize(build.node("Relu", [value], "relu2"))
    value = build.requantize(build.node("GlobalAveragePool", [value], "pool"))
    value = build.requantize(build.node("Flatten", [value], "flat"))
    last = build.int8_layer("Gemm", value, "logits", (10, 16), SCALE, transB=1)
    return build.model(TensorProto.UINT8, last)


def saved(proto: onnx.ModelProto, folder: Path, *plants: Plant) -> Path:
    """Writes a model, after planting faults into it."""
    for plant in plants:
        plant(proto)
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def node(proto: onnx.ModelProto, name: str) -> NodeProto:
    found: NodeProto = next(one for one in proto.graph.node if one.name == name)
    return found


def values(proto: onnx.ModelProto, name: str) -> np.ndarray:
    tensor = next(one for one in proto.graph.initializer if one.name == name)
    return numpy_helper.to_array(tensor).copy()


def put_values(proto: onnx.ModelProto, name: str, array: np.ndarray | np.generic) -> None:
    tensor = next((one for one in proto.graph.initializer if one.name == name), None)
    (tensor or proto.graph.initializer.add()).CopyFrom(
        numpy_helper.from_array(np.asarray(array), name)
    )


def insert(
    proto: onnx.ModelProto, operator: str, before: str, inputs: list[str], **attributes: Any
) -> None:
    """Puts a node between a node and its first input; constant inputs of it follow."""
    place = next(i for i, one in enumerate(proto.graph.node) if one.name == before)
    reader = proto.graph.node[place]
    new = helper.make_node(
        operator, [reader.input[0], *inputs], ["planted"], name="planted", **attributes
    )
    reader.input[0] = "planted"
    proto.graph.node.insert(place, new)
