"""Writing an ONNX file that anyone can run: bytes in, logits out, and what they mean inside."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import onnx.parser
import onnx.shape_inference
import torch
from torch import nn

from compress.architectures.spec import ModelSpec
from compress.data.preprocess import Preprocess
from compress.errors import CompressError
from compress.paths import atomic_write
from compress.progress import waiting
from compress.quantize.common import CONTRIB, OPSET

INPUT, OUTPUT = "pixels", "logits"
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
"""ONNX Runtime's own operators that we use: nodes that say the same, and their attributes."""


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """What a file of ours says about itself in its metadata."""

    class_names: tuple[str, ...]
    preprocess: Preprocess
    digest: str
    """Of the checkpoint it was exported from."""
    stage: str


def export_onnx(model: nn.Module, spec: ModelSpec, path: Path, *, digest: str, stage: str) -> None:
    """Exports a model that takes pixels.

    Input `pixels`: uint8 `[batch, channels, size, size]`; output `logits`: float32
    `[batch, classes]`; the batch is dynamic. The written file has passed ONNX's checker and
    strict shape inference.

    Args:
        model: in eval mode, on the CPU.
        spec: names the classes and the preprocessing.
        path: of the file.
        digest: of the checkpoint, for the metadata.
        stage: that made the checkpoint, likewise.
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
    }
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in facts.items()})
    _strip_debug_information(proto)
    _use_global_pooling(proto)
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
        CompressError: it is no ONNX file, or one of another origin.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's DecodeError has no importable public name
        raise CompressError(f"{path} is not an ONNX file, or is damaged") from None
    raw = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        facts = {name: json.loads(raw[name]) for name in OnnxFacts.__dataclass_fields__}
        preprocess = facts["preprocess"]
        return OnnxFacts(
            class_names=tuple(facts["class_names"]),
            preprocess=Preprocess(
                **{**preprocess, "mean": tuple(preprocess["mean"]), "std": tuple(preprocess["std"])}
            ),
            digest=facts["digest"],
            stage=facts["stage"],
        )
    except (KeyError, TypeError, json.JSONDecodeError):
        raise CompressError(
            f"{path} was not written by compress: its metadata lacks classes and preprocessing"
        ) from None


def _use_global_pooling(proto: onnx.ModelProto) -> None:
    """Writes means over height and width as GlobalAveragePool.

    ONNX Runtime has it in int8 and, in float, does it faster than ReduceMean.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "ReduceMean" or node.input[1] not in constants:
            continue
        axes = sorted(onnx.numpy_helper.to_array(constants[node.input[1]]).tolist())
        keeps = {entry.name: entry.i for entry in node.attribute}.get("keepdims", 1)
        if axes in ([2, 3], [-2, -1]) and keeps:
            node.op_type = "GlobalAveragePool"
            del node.input[1], node.attribute[:]
    used = {name for node in graph.node for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)


def _define_contrib_operators(proto: onnx.ModelProto) -> None:
    """Defines ONNX Runtime's own operators by standard ones, for runtimes that lack them.

    ONNX Runtime prefers its kernel to the definition.
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
    """Removes the exporter's notes about Python source lines: bytes, and paths of this machine."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's remarks, which are about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
