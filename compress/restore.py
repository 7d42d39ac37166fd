"""From a checkpoint back to its network."""

from __future__ import annotations

from torch import nn

from compress.architectures.build import Classifier, build
from compress.architectures.resize import remove_blocks, resize
from compress.architectures.sources import user_code
from compress.checkpoint import Checkpoint, Description, read_tensors
from compress.errors import CheckpointError


def build_pruned(description: Description) -> Classifier:
    """Builds the float network of a checkpoint, pruned as it was, without its tensors.

    Raises:
        CheckpointError: the user's code is not what it was when the checkpoint was made.
    """
    if user_code(description.spec.architecture) != description.spec.code:
        raise CheckpointError(
            f"the code of {description.spec.architecture} has changed since the checkpoint was "
            "made, so it may compute something else; bring the old code back, or make the stage "
            "anew"
        )
    classifier = build(description.spec)
    remove_blocks(classifier.network, description.removed)
    resize(classifier.network, description.shapes)
    return classifier


def load_model(checkpoint: Checkpoint) -> nn.Module:
    """Rebuilds a checkpoint's network: from the spec, resized, quantised if it was.

    Only known architectures are imported, and no code of the checkpoint is run.

    Returns:
        A module in eval mode that takes pixels.

    Raises:
        CheckpointError: the tensors do not fit the description.
    """
    classifier = build_pruned(checkpoint.description)
    model: nn.Module = classifier
    layout = checkpoint.description.quantized
    if layout is not None:
        from compress.quantize.placement import freeze, place, prepare

        model = freeze(place(prepare(classifier), layout))
    try:
        model.load_state_dict(read_tensors(checkpoint), strict=True)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"the tensors in {checkpoint.folder} do not fit its network: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from None
    return model.eval()
