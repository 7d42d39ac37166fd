"""Rebuilds the network of a checkpoint."""

from __future__ import annotations

import math

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
    """Builds the float network of a checkpoint, pruned as it was, without its tensors.

    Args:
        description: the checkpoint's.
        most: parameters that the network may have before it is pruned.

    Raises:
        CheckpointError: the user's code is not what it was when the checkpoint was made.
        CompressError: there is no such network, or none that can be pruned like that.
    """
    if user_code(description.spec.architecture) != description.spec.code:
        raise CheckpointError(
            f"the code of {description.spec.architecture} has changed since the checkpoint was "
            "made, so it may compute something else; bring the old code back, or make the stage "
            "anew"
        )
    classifier = build(description.spec, most=most)
    if description.removed or description.shapes:
        remove_blocks(classifier.network, description.removed)
        resize(classifier.network, description.shapes)
        try_forward(classifier, description.spec)
    return classifier


def load_model(checkpoint: Checkpoint) -> nn.Module:
    """Rebuilds a checkpoint's network: from the spec, resized, quantized if it was.

    Only known architectures are imported, and no code of the checkpoint is run.

    Returns:
        A module in eval mode that takes images.

    Raises:
        CheckpointError: the tensors do not fit the description.
    """
    # A description may ask for any network: for none that is larger than the file can fill.
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
    tensors, own = read_tensors(checkpoint), model.state_dict()
    for name in sorted(set(own) | set(tensors)):
        if (has := _kind(own.get(name))) != (given := _kind(tensors.get(name))):
            raise CheckpointError(
                f"the tensors in {checkpoint.folder} do not fit its network: {name} is {given} "
                f"there, {has} in the network"
            )
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def _kind(tensor: Tensor | None) -> str:
    """Returns a tensor's type and shape in words."""
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
