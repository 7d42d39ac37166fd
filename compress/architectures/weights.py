"""Weights to start from: torchvision's pretrained ones by name, or a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.architectures.sources import TIMM, import_timm
from compress.architectures.spec import WEIGHT_FILES
from compress.errors import CompressError
from compress.settings import nearest

PRETRAINED = "pretrained"
_NOT_DOWNLOADED = (
    "the weights {} of {} could not be downloaded ({}); give a file instead: "
    "weights = 'path/to/weights.pth'"
)


def load_weights(network: nn.Module, architecture: str, weights: str) -> list[str]:
    """Loads weights into a network, in place.

    Tensors whose shapes differ, as the classifier's do for another number of classes, stay as
    they were and are named.

    Args:
        network: as its spec builds it.
        architecture: its name in torchvision, or `timm:NAME`.
        weights: a weights name of torchvision such as `IMAGENET1K_V1`, for timm `pretrained`; a
            path, or empty for none.

    Returns:
        The tensors that were not taken, with both shapes.

    Raises:
        CompressError: there are no such weights, the file is damaged, or it is of another network.
    """
    if not weights:
        return []
    given = _read_file(Path(weights)) if weights.endswith(WEIGHT_FILES) else None
    if given is None:
        given = _download(architecture, weights)
    # Checkpoints of this program keep the network beside its normalisation.
    given = {name.removeprefix("network."): value for name, value in given.items()}
    own = network.state_dict()
    missing, foreign = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or foreign:
        raise CompressError(
            f"{weights} holds another network's weights: it lacks {_some(missing)} and has "
            f"{_some(foreign)} too many"
        )
    fitting = {name: value for name, value in given.items() if value.shape == own[name].shape}
    network.load_state_dict(fitting, strict=False)
    return [
        f"{name} ({_shape(given[name])}, the network has {_shape(own[name])})"
        for name in sorted(set(given) - set(fitting))
    ]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
    )


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CompressError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        raw = torch.load(path, weights_only=True, map_location="cpu")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's advice is to run what is in it
            reason = "it was not saved by torch.save, or holds more than tensors"
        raise CompressError(f"{path} cannot be read as weights: {reason}") from None
    state = raw.get("state_dict", raw) if isinstance(raw, dict) else raw
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CompressError(
            f"{path} holds no state dict; save it with torch.save(model.state_dict())"
        )
    return state


def _download(architecture: str, name: str) -> Mapping[str, Tensor]:
    from torchvision import models

    if architecture.startswith(TIMM):
        return _download_from_timm(architecture.removeprefix(TIMM), name)
    try:
        known = models.get_model_weights(architecture)
    except ValueError:
        raise CompressError(f"torchvision has no weights for {architecture!r}") from None
    if name not in known.__members__:
        raise CompressError(f"unknown weights {name!r}; {nearest(name, known.__members__)}")
    try:
        return known[name].get_state_dict(progress=True)  # type: ignore[no-any-return]
    except OSError as error:
        raise CompressError(_NOT_DOWNLOADED.format(name, architecture, error)) from None


def _download_from_timm(architecture: str, name: str) -> Mapping[str, Tensor]:
    if name != PRETRAINED:
        raise CompressError(f"timm's weights are named {PRETRAINED!r}, got {name!r}")
    try:
        return import_timm().create_model(architecture, pretrained=True).state_dict()  # type: ignore[no-any-return]
    except (OSError, RuntimeError) as error:
        raise CompressError(_NOT_DOWNLOADED.format(name, architecture, error)) from None
