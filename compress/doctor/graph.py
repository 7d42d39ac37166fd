"""Checks of operators: padding, normalization, pooling."""

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from compress.doctor.finding import Check, Fault
from compress.doctor.model import Model
from compress.doctor.onnx_graph import Graph, attribute, names
from compress.log import count_of

IMAGE_AXES = ([2, 3], [-2, -1])
"""Height and width of `[batch, channels, height, width]`."""


def explicit_pads(model: Model) -> Iterator[Fault]:
    """Finds Pad operators that ONNX Runtime cannot make part of the operator that reads them."""
    found = [node for node in model.optimized.nodes if node.op_type == "Pad"]
    if found:
        yield Fault(what=count_of(len(found), "separate Pad operator"), where=names(found))


def batchnorms(model: Model) -> Iterator[Fault]:
    """Finds BatchNorms that ONNX Runtime cannot fold into a convolution."""
    nodes = [node for node in model.optimized.nodes if node.op_type == "BatchNormalization"]
    found = [node for node in nodes if not attribute(node, "training_mode", 0)]
    if found:
        yield Fault(what=count_of(len(found), "separate BatchNorm"), where=names(found))


def training_batchnorms(model: Model) -> Iterator[Fault]:
    """Finds BatchNorms that normalize with the statistics of the batch."""
    nodes = [node for node in model.file.nodes if node.op_type == "BatchNormalization"]
    found = [node for node in nodes if attribute(node, "training_mode", 0)]
    if found:
        yield Fault(
            what=f"{count_of(len(found), 'BatchNorm')} in training mode", where=names(found)
        )


def mean_pools(model: Model) -> Iterator[Fault]:
    """Finds means over height and width that are not a GlobalAveragePool."""
    found = [node for node in model.file.nodes if _is_mean_pool(node, model.file)]
    if found:
        yield Fault(
            what=f"{count_of(len(found), 'mean')} over height and width", where=names(found)
        )


def _is_mean_pool(node: NodeProto, graph: Graph) -> bool:
    if node.op_type != "ReduceMean":
        return False
    given = graph.array(node.input[1]) if len(node.input) > 1 else None  # since opset 18
    if given is None:
        given = np.array(
            [n for entry in node.attribute if entry.name == "axes" for n in entry.ints]
        )
    return sorted(given.flatten().tolist()) in IMAGE_AXES


GRAPH_CHECKS = (
    Check(
        name="explicit-pad",
        severity="warning",
        subject="Pad operators that ONNX Runtime does not merge into a convolution or pooling",
        why="each copies its whole input; between DequantizeLinear and QuantizeLinear it also runs "
        "in float",
        upstream=("microsoft/onnxruntime#21496", "microsoft/onnxruntime#22001"),
        fix="give the convolution the padding (attribute pads); pad with zeros only, and put no "
        "quantizer between Pad and the convolution",
        find=explicit_pads,
    ),
    Check(
        name="batchnorm",
        severity="warning",
        subject="BatchNorms that ONNX Runtime does not fold into a convolution",
        why="each reads and writes its whole input; quantizers between it and its convolution keep "
        "both apart",
        upstream=("microsoft/onnxruntime#9938", "onnxsim/onnxsim#297"),
        fix="fold it into the weights before quantizing (onnxruntime.quantization's "
        "quant_pre_process, or torch.nn.utils.fusion.fuse_conv_bn_eval)",
        find=batchnorms,
    ),
    Check(
        name="training-batchnorm",
        severity="error",
        subject="BatchNorms in training mode",
        why="they normalize with the statistics of the batch, so an image's result depends on the "
        "others in it",
        upstream=("microsoft/onnxruntime#26584", "pytorch/pytorch#75252"),
        fix="call model.eval() before the export, and keep track_running_stats on",
        find=training_batchnorms,
    ),
    Check(
        name="mean-pool",
        severity="warning",
        subject="ReduceMean over height and width",
        why="ONNX Runtime has a faster kernel for GlobalAveragePool, and an int8 one; it has none "
        "for ReduceMean. PyTorch exports AdaptiveAvgPool2d(1) and x.mean((2, 3)) as ReduceMean",
        upstream=("microsoft/onnxruntime#10721", "microsoft/onnxscript#1646"),
        fix="replace it with GlobalAveragePool before quantizing",
        find=mean_pools,
    ),
)
