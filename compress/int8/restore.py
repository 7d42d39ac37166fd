"""Rebuilds the network of a checkpoint."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from compress.architectures.build import MAX_PARAMETERS, Classifier, build, try_forward
from compress.architectures.resize import remove_blocks, resize
from compress.architectures.sources import user_code
from compress.checkpoint import Checkpoint, Description, read_shapes, read_tensors
from compress.errors import CheckpointError, CompressError
from compress.int8.conversion import convert
from compress.int8.insertion import insert_quantizers
from compress.int8.lowering import lower

MAX_PRUNED_RATIO = 256
"""How many times more parameters a network may have had before it was pruned."""


def build_pruned(description: Description, *, most: int = MAX_PARAMETERS) -> Classifier:
    """Builds the float network of a checkpoint, pruned accordingly, without loading its tensors.

    At most `most` parameters are allowed before pruning.

    Raises:
        CheckpointError: the user's code has changed since the checkpoint was made.
        CompressError: there is no such network, or it cannot be pruned to these shapes.
    """
    if user_code(description.spec.architecture) != description.spec.code:
        raise CheckpointError(
            f"the code of {description.spec.architecture} has changed since the checkpoint was "
            "made, so its results may differ; restore the old code or rerun the stage"
        )
    classifier = build(description.spec, most=most)
    if description.removed or description.shapes:
        remove_blocks(classifier.network, description.removed)
        resize(classifier.network, description.shapes)
        try_forward(classifier, description.spec)
    return classifier


def load_model(checkpoint: Checkpoint) -> nn.Module:
    """Rebuilds a checkpoint's network from its spec: pruned and quantized if it was.

    Imports known architectures only, and never runs code from the checkpoint.

    Returns:
        A module in eval mode that takes images.

    Raises:
        CheckpointError: the tensors do not match the description.
    """
    # A description could name any network: refuse those that are too large for the file's tensors.
    elements = sum(math.prod(shape) for shape in read_shapes(checkpoint).values())
    try:
        classifier = build_pruned(checkpoint.description, most=MAX_PRUNED_RATIO * elements)
    except CheckpointError:
        raise
    except CompressError as error:
        raise CheckpointError(f"{checkpoint.folder}: {error}") from None
    model: nn.Module = classifier
    layout = checkpoint.description.quantized
    if layout is not None:
        model = convert(insert_quantizers(lower(classifier), layout))
    tensors = read_tensors(checkpoint)
    _check_tensors(tensors, model.state_dict(), checkpoint.folder)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def _check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path
) -> None:
    for name in sorted(set(expected) | set(tensors)):
        given, wanted = _describe(tensors.get(name)), _describe(expected.get(name))
        if given != wanted:
            raise CheckpointError(
                f"the tensors in {folder} do not match its network: {name} is {given} there, "
                f"but {wanted} in the network"
            )


def _describe(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
