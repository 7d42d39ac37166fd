"""A file under examination: as it was written, and as ONNX Runtime runs it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
import onnx.shape_inference
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from compress.doctor.layers import Layer, layers
from compress.doctor.onnx_graph import Graph, read_graph
from compress.errors import CompressError
from compress.measure.runtime import optimized_graph
from compress.onnx_file import read_onnx

MAX_EXTERNAL = 2**33
"""Largest external data, in bytes; it is read into memory."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A file under examination."""

    proto: onnx.ModelProto
    external: tuple[str, ...]
    """Names of the files next to it that hold its weights."""
    file: Graph
    optimized: Graph
    """After ONNX Runtime's fusions; its constants may lack their values."""

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The file's layers with constant weights."""
        return tuple(layers(self.file))


def read_model(path: Path) -> Model:
    """Reads a file that anyone may have written.

    Raises:
        CompressError: it is not an ONNX file, damaged, or too large; or ONNX Runtime cannot load
            it.
    """
    shapes = _shapes(onnx.shape_inference.infer_shapes(read_onnx(path)).graph)
    optimized = optimized_graph(path)
    proto = onnx.load(path, load_external_data=False)
    external = sorted({_location(tensor) for tensor in proto.graph.initializer} - {""})
    if sum((path.parent / name).stat().st_size for name in external) > MAX_EXTERNAL:
        raise CompressError(f"{path} has more than {MAX_EXTERNAL / 2**30:.0f} GiB of weights")
    file = read_graph(proto.graph, shapes)
    try:
        load_external_data_for_model(proto, str(path.parent))
        for tensor in file.constants.values():
            onnx.numpy_helper.to_array(tensor)
    except Exception:  # onnx raises many error types
        raise CompressError(f"{path} is damaged: its weights cannot be read") from None
    return Model(
        proto=proto, external=tuple(external), file=file, optimized=read_graph(optimized, {})
    )


def _location(tensor: TensorProto) -> str:
    if not uses_external_data(tensor):
        return ""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }
