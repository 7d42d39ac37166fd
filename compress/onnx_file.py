"""Writes and reads ONNX files that map uint8 images to logits, with classes and preprocessing."""

import json
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
import onnx.parser
import onnx.shape_inference
import torch
from pydantic import TypeAdapter
from torch import nn

from compress.architectures.spec import ModelSpec
from compress.data.preprocess import Preprocess
from compress.errors import CompressError
from compress.files import atomic_write, parse_json
from compress.log import waiting

OPSET = 18
CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators; their version is 1."""
INPUT, OUTPUT = "images", "logits"
WITHOUT_VNNI = "without_vnni"
"""Metadata entry of int8 files: what they lose on other CPUs, an `int8.saturation.Saturation`."""
MAX_GROWTH, SMALL, LARGE = 256, 2**22, 2**28
"""Limit on the elements of an intermediate value: `MAX_GROWTH` times the input's, clamped."""
MAX_FILE = 2**31
"""Bytes of the largest message that protobuf can read."""
SHAPE_BYTES = 1024
"""Constants up to this size may be shapes and are kept for shape inference."""
CONTRIB_BODIES = {
    "QuickGelu": (("s = Sigmoid(x)", "y = Mul(x, s)"), ("alpha",)),  # with alpha = 1
    "Gelu": (
        (
            "root = Constant <value_float = 1.41421356> ()",
            "one = Constant <value_float = 1.0> ()",
            "half = Constant <value_float = 0.5> ()",
            "scaled = Div(x, root)",
            "erf = Erf(scaled)",
            "shifted = Add(erf, one)",
            "product = Mul(x, shifted)",
            "y = Mul(product, half)",
        ),
        (),
    ),
}
"""ONNX Runtime's own operators in use: equivalent standard nodes, and their attributes."""


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """Metadata of a file that compress wrote."""

    class_names: tuple[str, ...]
    preprocess: Preprocess
    digest: str
    """Digest of the checkpoint it was exported from."""
    stage: str


def export_onnx(
    model: nn.Module,
    spec: ModelSpec,
    path: Path,
    *,
    digest: str,
    stage: str,
    metadata: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Exports a model.

    Input `images`: uint8 `[batch, channels, size, size]`; output `logits`: float32
    `[batch, classes]`; the batch is dynamic. The written file has passed ONNX's checker and
    strict shape inference.

    Args:
        model: the model, in eval mode on the CPU.
        spec: classes and preprocessing, for the metadata.
        path: the file to write.
        digest: digest of the checkpoint, for the metadata.
        stage: stage that made the checkpoint, for the metadata.
        metadata: further entries, written as JSON.
    """
    side, channels = spec.preprocess.size, spec.preprocess.channels
    example = torch.zeros(2, channels, side, side, dtype=torch.uint8)
    with waiting(f"exporting {path.name}"), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    facts = {
        "class_names": list(spec.class_names),
        "preprocess": asdict(spec.preprocess),
        "digest": digest,
        "stage": stage,
        **metadata,
    }
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in facts.items()})
    _strip_debug_information(proto)
    _use_global_pooling(proto)
    _share_constants(proto.graph)
    _define_contrib_operators(proto)
    inferred = onnx.shape_inference.infer_shapes(
        proto, check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(inferred, full_check=True)
    with atomic_write(path) as partial:
        onnx.save(proto, partial)


def read_facts(path: Path) -> OnnxFacts:
    """Reads the metadata of a file that `export_onnx` wrote.

    Raises:
        CompressError: see `read_onnx`; or compress did not write the file.
    """
    proto = read_onnx(path)
    raw = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        facts = TypeAdapter(OnnxFacts).validate_python(
            {name: parse_json(raw[name]) for name in OnnxFacts.__dataclass_fields__}
        )
    except (KeyError, ValueError):
        raise CompressError(
            f"{path} was not written by compress: its metadata lacks classes and preprocessing"
        ) from None
    side, channels = facts.preprocess.size, facts.preprocess.channels
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [_signature(value) for value in proto.graph.input if value.name not in constants]
    outputs = [_signature(value) for value in proto.graph.output]
    if inputs != [(INPUT, onnx.TensorProto.UINT8, (channels, side, side))] or outputs != [
        (OUTPUT, onnx.TensorProto.FLOAT, (len(facts.class_names),))
    ]:
        raise CompressError(
            f"{path} is damaged or was edited: it must take {INPUT}, uint8 [batch, {channels}, "
            f"{side}, {side}], and return {OUTPUT}, float32 [batch, {len(facts.class_names)}]"
        )
    return facts


def read_onnx(path: Path) -> onnx.ModelProto:
    """Reads an untrusted file before ONNX Runtime opens it.

    Returns:
        The model, without the values of its large constants.

    Raises:
        CompressError: it is not an ONNX file, refers to files outside its folder, or would take
            gigabytes for one image.
    """
    try:
        if not path.is_file():  # a device or a pipe may never end
            raise CompressError("no file")
        if path.stat().st_size >= MAX_FILE:
            raise CompressError("too large")
        proto = onnx.load(path, load_external_data=False)
        tensors = list(_constants(proto.graph.node, proto.graph))
        tensors += [tensor for body in proto.functions for tensor in _constants(body.node)]
    except Exception:  # protobuf's DecodeError has no importable public name
        raise CompressError(f"{path} is not an ONNX file, or is damaged") from None
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            _check_beside(entries.get("location", ""), path)
        if len(tensor.raw_data) > SHAPE_BYTES:
            tensor.ClearField("raw_data")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    except Exception as error:  # onnx's own, and protobuf's
        raise CompressError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    largest = max((_elements(value) for value in inferred.graph.input), default=0)
    most = min(LARGE, max(SMALL, MAX_GROWTH * largest))
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if _elements(value) > most:
            raise CompressError(
                f"{path} needs too much memory: {value.name} has {_elements(value):,} elements, "
                f"more than {most:,}"
            )
    return proto


def _check_beside(location: str, path: Path) -> None:
    """Raises CompressError unless an external data file is in or below the ONNX file's folder."""
    folder = path.parent.resolve()
    with suppress(ValueError):  # a null byte
        place = (folder / location).resolve()
        if place.is_relative_to(folder) and place.is_file():
            return
    raise CompressError(
        f"{path} has its weights in {location!r}, which is not a file in the same folder"
    )


def _elements(value: onnx.ValueInfoProto) -> int:
    """Returns the number of elements of a value for one image; unknown dimensions count as 1."""
    return math.prod(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def _constants(
    nodes: Iterable[onnx.NodeProto], graph: onnx.GraphProto | None = None
) -> Iterator[onnx.TensorProto]:
    """Yields all constant tensors of a graph, or of a function's nodes."""
    if graph is not None:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _constants(inner.node, inner)


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[int, ...]]:
    """Returns an input's or output's name, type, and shape without the batch dimension."""
    kind = value.type.tensor_type
    return value.name, kind.elem_type, tuple(dim.dim_value for dim in kind.shape.dim[1:])


def _use_global_pooling(proto: onnx.ModelProto) -> None:
    """Replaces ReduceMean over height and width with GlobalAveragePool.

    ONNX Runtime has an int8 kernel for it, and its float kernel is faster.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "ReduceMean" or node.input[1] not in constants:
            continue
        axes = sorted(onnx.numpy_helper.to_array(constants[node.input[1]]).tolist())
        if axes not in ([2, 3], [-2, -1]):
            continue
        keeps = {entry.name: entry.i for entry in node.attribute}.get("keepdims", 1)
        node.op_type = "GlobalAveragePool"
        del node.input[1], node.attribute[:]
        if not keeps:
            _flatten(node, graph)
    used = {name for node in graph.node for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)


def _flatten(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
    """Puts a Flatten behind a node, which gives the value its old name."""
    pooled = f"{node.output[0]}_pooled"
    flatten = onnx.helper.make_node(
        "Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten"
    )
    node.output[0] = pooled
    graph.node.insert(list(graph.node).index(node) + 1, flatten)


def _share_constants(graph: onnx.GraphProto) -> None:
    """Stores equal constants once."""
    first: dict[tuple[object, ...], str] = {}
    copies: dict[str, str] = {}
    for tensor in list(graph.initializer):
        key = (tensor.data_type, tuple(tensor.dims), tensor.raw_data)
        if tensor.raw_data and first.setdefault(key, tensor.name) != tensor.name:
            copies[tensor.name] = first[key]
            graph.initializer.remove(tensor)
    for node in graph.node:
        node.input[:] = [copies.get(value, value) for value in node.input]


def _define_contrib_operators(proto: onnx.ModelProto) -> None:
    """Defines ONNX Runtime's own operators as functions, for runtimes that lack them.

    ONNX Runtime uses its kernel instead of the function.
    """
    used = {node.op_type for node in proto.graph.node if node.domain == CONTRIB}
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    for name in sorted(used):
        body, attributes = CONTRIB_BODIES[name]
        nodes = [onnx.parser.parse_node(line) for line in body]
        function = onnx.helper.make_function(
            CONTRIB, name, ["x"], ["y"], nodes, opsets, attributes=attributes
        )
        proto.functions.append(function)


def _strip_debug_information(proto: onnx.ModelProto) -> None:
    """Removes the exporter's references to Python source lines."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's log, which is about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
