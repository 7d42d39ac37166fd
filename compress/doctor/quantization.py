"""Checks of int8: what ONNX Runtime fuses, scales, ranges."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto
from pydantic import TypeAdapter

from compress.doctor.finding import Check, Fault
from compress.doctor.layers import Layer
from compress.doctor.model import Model
from compress.doctor.onnx_graph import DEQUANTIZE, QUANTIZE, Graph, names
from compress.files import parse_json
from compress.int8.layer import BARRIER
from compress.int8.saturation import Saturation
from compress.log import count_of
from compress.onnx_file import WITHOUT_VNNI

INT8_KERNELS = {
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"),
    *("LeakyRelu", "Sigmoid", "Softmax", "MaxPool", "Resize", "Relu", "Clip"),
    *("Reshape", "Flatten", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Split", "Gather"),
}
"""Operators that ONNX Runtime can run in int8, and activations that it makes part of them."""
ONE_INPUT = INT8_KERNELS - {"MatMul", "Add", "Mul", "Concat"}
"""Those of which only the first input is an activation."""
ACTIVATIONS = {"Relu", "Clip"}
BIAS_TOLERANCE = 0.01
"""Relative; ONNX Runtime's own (#28229)."""
UINT8_MAX, INT16_MAX, INT16_MIN, INT32_MAX = 255, 2**15 - 1, -(2**15), 2**31 - 1


def unfused(model: Model) -> Iterator[Fault]:
    """Finds operators between DequantizeLinear and QuantizeLinear that still run in float."""
    found = _unfused(model.optimized)
    if found:
        what = f"in float between DequantizeLinear and QuantizeLinear: {_counts(found)}"
        yield Fault(what=what, where=names(found))


def float_islands(model: Model) -> Iterator[Fault]:
    """Finds operators that read int8 and could compute it, but lack a quantizer on another side."""
    found = _islands(model.optimized)
    if found:
        yield Fault(what=f"in float between int8 operators: {_counts(found)}", where=names(found))


def dequantized_weights(model: Model) -> Iterator[Fault]:
    """Finds constants that are dequantized whenever the model runs, for no other reason found."""
    graph = model.optimized
    explained = {id(node) for node in (*_unfused(graph), *_islands(graph))}
    found = {
        id(reader): reader
        for node in graph.nodes
        if node.op_type == DEQUANTIZE and node.input[0] in graph.constants
        for reader in graph.readers.get(node.output[0], ())
        if id(reader) not in explained
    }
    if found:
        what = f"weights are dequantized at every run: {_counts(found.values())}"
        yield Fault(what=what, where=names(found.values()))


def silently_quantized(model: Model) -> Iterator[Fault]:
    """Finds float layers in the file whose weights ONNX Runtime quantizes on its own."""
    known = {*model.file.constants, *model.file.maker}
    found = [
        node
        for node in model.optimized.nodes
        if node.op_type in {"QLinearConv", "QGemm"} and not {*node.input[3:6]} & known
    ]
    if found:
        yield Fault(
            what=f"{count_of(len(found), 'float layer')} with int8 weights", where=names(found)
        )


def int8_activations(model: Model) -> Iterator[Fault]:
    """Finds int8 operators that read int8 activations.

    Where they are written as QDQ, ONNX Runtime turns int8 into uint8 by itself.
    """
    found = [node for node in model.file.nodes if _reads_int8(model.file, node)]
    if found:
        yield Fault(what=f"int8 activations: {_counts(found)}", where=names(found))


def bias_scales(model: Model) -> Iterator[Fault]:
    """Finds int32 biases whose scale is not that of the sums that they are added to."""
    found = [layer.name for layer in model.layers if _is_bias_off(layer)]
    if found:
        what = f"{count_of(len(found), 'layer')} with a bias scale other than input times weight"
        yield Fault(what=what, where=tuple(found))


def bias_overflows(model: Model) -> Iterator[Fault]:
    """Finds int32 biases that are clipped or leave no room for the products."""
    found = [layer.name for layer in model.layers if _overflows(layer)]
    if found:
        yield Fault(
            what=f"{count_of(len(found), 'layer')} with sums beyond int32", where=tuple(found)
        )


def saturation(model: Model) -> Iterator[Fault]:
    """Finds int8 weights whose products with uint8 can exceed int16 in pairs.

    If the file says what was measured, that counts.
    """
    found = tuple(layer.name for layer in model.layers if _saturates(layer))
    measured = _measured_saturation(model.proto)
    if measured is None and found:
        what = f"{count_of(len(found), 'layer')} with sums of two products beyond int16"
        yield Fault(what=what, where=found)
    elif measured is not None and measured.top1_saturated < measured.top1:
        what = (
            f"top-1 {measured.top1_saturated:.2f} % instead of {measured.top1:.2f} % on CPUs "
            f"without VNNI, measured on {count_of(measured.n_images, 'image')}"
        )
        yield Fault(what=what, where=found)


def _measured_saturation(proto: ModelProto) -> Saturation | None:
    """Returns what the quantize stage wrote into the file's metadata, if it did."""
    texts = [entry.value for entry in proto.metadata_props if entry.key == WITHOUT_VNNI]
    try:
        return TypeAdapter(Saturation).validate_python(parse_json(texts[0])) if texts else None
    except ValueError:
        return None


def _unfused(graph: Graph) -> list[NodeProto]:
    return [node for node in graph.nodes if _wants_int8(graph, node) and _is_quantized(graph, node)]


def _islands(graph: Graph) -> list[NodeProto]:
    leading = _leading_to_int8(graph)
    return [
        node
        for node in graph.nodes
        if _kind(node) in INT8_KERNELS
        and not _clips_nothing(graph, node)
        and any(graph.is_dequantized(value) for value in _activations(node))
        and not (_wants_int8(graph, node) and _is_quantized(graph, node))
        and id(node) in leading
    ]


def _kind(node: NodeProto) -> str:
    """Returns an operator's type, without the activation that ONNX Runtime made part of it."""
    return node.op_type.removeprefix("Fused")


def _clips_nothing(graph: Graph, node: NodeProto) -> bool:
    """Returns whether a node only keeps the layer behind it in float, see `int8.layer.BARRIER`.

    Bounds that are not in memory may be such, too.
    """
    if node.op_type != "Clip" or len(node.input) < 3:
        return False
    bounds = [graph.array(value) for value in node.input[1:]]
    return all(bound is None or (np.abs(bound) >= BARRIER).all() for bound in bounds)


def _activations(node: NodeProto) -> list[str]:
    """Returns the inputs that must be dequantized for a node to run in int8."""
    return [
        value for value in (node.input[:1] if _kind(node) in ONE_INPUT else node.input) if value
    ]


def _wants_int8(graph: Graph, node: NodeProto) -> bool:
    values = _activations(node)
    return (
        _kind(node) in INT8_KERNELS
        and any(graph.is_dequantized(value) for value in values)
        and all(graph.made_by(value, DEQUANTIZE) for value in values)
    )


def _is_quantized(graph: Graph, node: NodeProto) -> bool:
    """Returns whether all that reads a node is a quantizer, perhaps after activations."""
    while True:
        readers = [reader for value in node.output for reader in graph.readers.get(value, ())]
        if not readers or any(value in graph.outputs for value in node.output):
            return False
        if len(readers) > 1 or readers[0].op_type not in ACTIVATIONS:
            return all(reader.op_type == QUANTIZE for reader in readers)
        node = readers[0]


def _leading_to_int8(graph: Graph) -> set[int]:
    """Returns the ids of nodes that a quantizer follows, after none but those with int8 kernels."""
    found: set[int] = set()
    for node in reversed(graph.nodes):
        readers = [reader for value in node.output for reader in graph.readers.get(value, ())]
        if any(
            reader.op_type == QUANTIZE or (_kind(reader) in INT8_KERNELS and id(reader) in found)
            for reader in readers
        ):
            found.add(id(node))
    return found


def _reads_int8(graph: Graph, node: NodeProto) -> bool:
    integer = node.op_type.startswith(("QLinear", "QGemm")) and len(node.input) > 2
    return integer and _type(graph, node.input[2]) == TensorProto.INT8


def _type(graph: Graph, value: str) -> int | None:
    return graph.constants[value].data_type if value in graph.constants else None


def _is_bias_off(layer: Layer) -> bool:
    if layer.input_scale is None or layer.weight_scale is None or layer.bias_scale is None:
        return False
    products = np.ravel(layer.input_scale) * np.ravel(layer.weight_scale)
    try:
        expected, given = np.broadcast_arrays(products, np.ravel(layer.bias_scale))
    except ValueError:  # blocks of weights with scales of their own
        return False
    return bool((np.abs(given - expected) > BIAS_TOLERANCE * np.abs(expected)).any())


def _overflows(layer: Layer) -> bool:
    if layer.bias is None or layer.bias.dtype.kind not in "iu" or layer.weight.dtype.kind != "i":
        return False
    rows = np.abs(layer.weight.reshape(len(layer.weight), -1))
    sums = np.abs(layer.bias.astype(np.int64)).ravel() + UINT8_MAX * rows.sum(1, dtype=np.int64)
    return bool((sums > INT32_MAX).any())


def _saturates(layer: Layer) -> bool:
    """Pairs are neighboring input channels at one position of the kernel."""
    if not layer.is_int8 or layer.dtype != np.int8 or layer.is_depthwise:
        return False
    rows = np.moveaxis(layer.weight, 1, -1).reshape(len(layer.weight), -1).astype(np.int32)
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(-1, 2)
    highest = UINT8_MAX * np.maximum(pairs, 0).sum(1)
    lowest = UINT8_MAX * np.minimum(pairs, 0).sum(1)
    return bool((highest > INT16_MAX).any() or (lowest < INT16_MIN).any())


def _counts(nodes: Iterable[NodeProto]) -> str:
    counted = Counter(map(_kind, nodes))
    return ", ".join(f"{count} {kind}" for kind, count in counted.most_common())


QUANTIZATION_CHECKS = (
    Check(
        name="unfused-qdq",
        severity="warning",
        subject="operators between DequantizeLinear and QuantizeLinear that do not fuse with them",
        why="they run in float, with two conversions each: slower than the float model",
        upstream=("microsoft/onnxruntime#12487", "microsoft/onnxruntime#7715"),
        fix="quantize inputs and output to uint8; MaxPool and data movement need one scale on both "
        "sides, a ReLU's output needs zero point 0 (no symmetric activations), other activations a "
        "quantizer before them, and each value one QuantizeLinear only",
        find=unfused,
    ),
    Check(
        name="float-island",
        severity="warning",
        subject="float operators between int8 ones that have int8 kernels, but lack a quantizer",
        why="values are converted to float and back on the way",
        upstream=("microsoft/onnxruntime#12487",),
        fix="quantize their other inputs and their output too, or leave the whole block in float",
        find=float_islands,
    ),
    Check(
        name="dequantized-weights",
        severity="warning",
        subject="constants that are dequantized at every run",
        why="the layer computes in float and converts its weights each time",
        upstream=("microsoft/onnxruntime#22889", "pytorch/pytorch#89976"),
        fix="quantize the layer's input and output; a last Gemm without a quantizer needs an int32 "
        "bias and a zero point of its weights; or store the weights in float",
        find=dequantized_weights,
    ),
    Check(
        name="silently-quantized",
        severity="warning",
        subject="float layers between quantizers, which ONNX Runtime quantizes when it loads them",
        why="their weights get one scale for the whole tensor, which costs accuracy, even if they "
        "were left in float on purpose",
        upstream=("microsoft/onnxruntime#22969",),
        fix="quantize the weights with one scale per channel, or put a Clip that clips nothing "
        "between DequantizeLinear and the layer",
        find=silently_quantized,
    ),
    Check(
        name="int8-activations",
        severity="warning",
        subject="int8 operators (QLinearConv, ...) that read int8 instead of uint8",
        why="ONNX Runtime's fast kernels on x86 read uint8. In QDQ form it turns int8 activations "
        "into uint8 by itself, in this form it cannot",
        upstream=("microsoft/onnxruntime#12072", "microsoft/onnxruntime#6732"),
        fix="quantize_static(..., quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, "
        "weight_type=QuantType.QInt8)",
        find=int8_activations,
    ),
    Check(
        name="bias-scale",
        severity="error",
        subject="int32 biases whose scale is not input scale times weight scale",
        why="many versions of ONNX Runtime add them to the sums whatever their scale, so results "
        "are wrong; newer ones compute the layer in float",
        upstream=("microsoft/onnxruntime#24711", "microsoft/onnxruntime#28229"),
        fix="quantize the bias with the product of both scales and zero point 0",
        find=bias_scales,
    ),
    Check(
        name="bias-overflow",
        severity="error",
        subject="int32 biases that leave no room for the products they are added to",
        why="a channel of tiny weights has a tiny scale, at which its bias exceeds int32 and is "
        "clipped, or wraps around",
        upstream=("microsoft/onnxruntime#22020",),
        fix="raise the weight scale of such channels until |bias| / scale fits into 30 bits",
        find=bias_overflows,
    ),
    Check(
        name="saturation",
        severity="note",
        subject="8-bit weights whose products can exceed 16 bits on x86 CPUs without VNNI",
        why="such CPUs add two products of uint8 and int8 in int16, which saturates: the same file "
        "is less accurate there",
        upstream=("microsoft/onnxruntime#5849", "microsoft/onnxruntime#14642"),
        fix="7-bit weights (reduce_range=True; compress quantize --reduce-range), or measure the "
        "accuracy on such a CPU",
        find=saturation,
    ),
)
