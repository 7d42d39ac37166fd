"""Checks of what a program that loads the file depends on."""

from collections.abc import Iterator

from compress.doctor.finding import Check, Fault
from compress.doctor.model import Model

MIN_OPSET = 13
"""Since then, QuantizeLinear and DequantizeLinear have one scale per channel."""
CLASSES = ("class", "label", "names")
PREPROCESSING = ("preprocess", "mean", "normaliz", "image.")
"""Parts of metadata keys; the last is of ONNX's own MetadataProps."""


def frozen_batch(model: Model) -> Iterator[Fault]:
    """Finds inputs whose first dimension is a number."""
    for put in model.proto.graph.input:
        sizes = put.type.tensor_type.shape.dim
        if put.name not in model.file.constants and len(sizes) > 1 and sizes[0].dim_value:
            size = sizes[0].dim_value
            yield Fault(what=f"the input accepts only batches of {size}", where=(put.name,))


def external_data(model: Model) -> Iterator[Fault]:
    """Finds weights outside the file."""
    if model.external:
        yield Fault(what="the weights are in other files", where=model.external)


def missing_metadata(model: Model) -> Iterator[Fault]:
    """Finds a file that says neither what its outputs mean nor what its input must be."""
    keys = [entry.key.lower() for entry in model.proto.metadata_props]
    missing = [
        what
        for what, parts in (("class names", CLASSES), ("preprocessing", PREPROCESSING))
        if not any(part in key for key in keys for part in parts)
    ]
    if missing:
        yield Fault(what=f"the metadata has no {' and no '.join(missing)}")


def old_opset(model: Model) -> Iterator[Fault]:
    """Finds a version of ONNX's operators without scales per channel."""
    for entry in model.proto.opset_import:
        if entry.domain in {"", "ai.onnx"} and entry.version < MIN_OPSET:
            yield Fault(what=f"the file uses opset {entry.version}")


DEPLOYMENT_CHECKS = (
    Check(
        name="frozen-batch",
        severity="warning",
        subject="a fixed batch size",
        why="any other number of images is refused, so a server can neither batch requests nor "
        "answer single ones",
        upstream=("microsoft/onnxruntime#9867", "pytorch/pytorch#149065"),
        fix="export with a dynamic batch: torch.onnx.export(..., "
        "dynamic_shapes=({0: torch.export.Dim('batch')},)) and an example of two images",
        find=frozen_batch,
    ),
    Check(
        name="external-data",
        severity="note",
        subject="weights in separate files",
        why="the model cannot be loaded without them, from its folder; they are needed above 2 GB "
        "only",
        upstream=("pytorch/pytorch#126479", "microsoft/onnxruntime#28764"),
        fix="torch.onnx.export(..., external_data=False), or load the file with the onnx package "
        "and save it again",
        find=external_data,
    ),
    Check(
        name="missing-metadata",
        severity="note",
        subject="no class names or no preprocessing in the metadata",
        why="whoever deploys the file has to guess the order of the classes, and mean, scale and "
        "size of the images; wrong ones cost accuracy in silence",
        upstream=("onnx/onnx#2928", "onnx/onnx#879"),
        fix="onnx.helper.set_model_props(model, {'class_names': ..., 'preprocess': ...})",
        find=missing_metadata,
    ),
    Check(
        name="old-opset",
        severity="warning",
        subject=f"an opset below {MIN_OPSET}",
        why="weights cannot have one scale per output channel, which costs accuracy in int8",
        upstream=("onnx/onnx#2772", "openvinotoolkit/nncf#1537"),
        fix="export again with a newer opset, or convert: onnx.version_converter.convert_version",
        find=old_opset,
    ),
)
