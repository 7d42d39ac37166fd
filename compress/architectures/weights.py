"""Initial weights: pretrained weights of torchvision or timm by name, or a file."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from compress.architectures.sources import TIMM, import_timm
from compress.architectures.spec import WEIGHT_FILES
from compress.data.preprocess import Inputs, Interpolation
from compress.errors import CompressError
from compress.settings import nearest

PRETRAINED = "pretrained"
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "backbone.")
"""What wrappers put before names: DataParallel, torch.compile, Lightning, this program, others."""
STATES = ("state_dict", "model_state_dict", "model")
"""Names of the state dict in a training checkpoint."""
HEADS = ("fc", "classifier", "head", "heads")
"""Common names of the classifier, which may be another in the file."""
NPZ = ".npz"


def load_weights(network: nn.Module, architecture: str, weights: str) -> list[str]:
    """Loads weights into a network, in place.

    Tensors of different shape, such as the classifier's for another number of classes, are skipped
    and returned; a classifier that is skipped starts at zero.

    Args:
        network: the network, as built from its spec.
        architecture: name in torchvision, or `timm:NAME`.
        weights: a weights name of torchvision such as `IMAGENET1K_V1`; `pretrained` for timm; a
            path; or empty for none.

    Returns:
        Names of the skipped tensors, with both shapes.

    Raises:
        CompressError: the weights do not exist, are damaged, or belong to a different network.
    """
    if not weights:
        return []
    _refuse_npz(weights)
    given = _read_file(Path(weights)) if weights.endswith(WEIGHT_FILES) else None
    if given is None:
        given = _download(architecture, weights)
    own = network.state_dict()
    given = _without_prefixes(given, own)
    missing, foreign = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if not _only_heads(network, missing, foreign):
        raise CompressError(
            f"{weights} belongs to a different network: missing {_some(missing)}; unexpected "
            f"{_some(foreign)}"
        )
    common = set(given) & set(own)
    fitting = {name: given[name] for name in common if given[name].shape == own[name].shape}
    network.load_state_dict(fitting, strict=False)
    _zero_new_classifier(network, fitting)
    return [
        *(f"{name} (not in the file)" for name in missing),
        *(
            f"{name} ({_shape(given[name])}, the network has {_shape(own[name])})"
            for name in sorted(common - set(fitting))
        ),
    ]


def weights_inputs(architecture: str, weights: str) -> Inputs:
    """Returns how images must be prepared for pretrained weights, by their own description.

    A file has none: for timm's networks it is that of the network's default weights; for others,
    ImageNet's usual values.

    Args:
        architecture: as in a `ModelSpec`.
        weights: see `load_weights`.

    Raises:
        CompressError: the weights do not exist.
    """
    if weights and architecture.startswith(TIMM):
        source = import_timm().get_pretrained_cfg(architecture.removeprefix(TIMM))
        if source is not None:
            return Inputs(
                size=source.input_size[-1],
                crop_pct=source.crop_pct,
                interpolation=_interpolation(source.interpolation),
                mean=tuple(source.mean),
                std=tuple(source.std),
            )
    if weights and not weights.endswith(WEIGHT_FILES):
        preset = _torchvision_weights(architecture, weights).transforms()
        return Inputs(
            size=preset.crop_size[0],
            crop_pct=preset.crop_size[0] / preset.resize_size[0],
            interpolation=_interpolation(preset.interpolation.value),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
    return Inputs()


def _interpolation(name: str) -> Interpolation:
    return "bilinear" if name == "bilinear" else "bicubic"


def _without_prefixes(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Removes prefixes of wrappers, as long as all names have one and none is the network's."""
    while not set(own) & set(given):
        first = next(iter(given), "")
        prefix = next((prefix for prefix in PREFIXES if first.startswith(prefix)), None)
        if prefix is None or not all(name.startswith(prefix) for name in given):
            break
        given = {name.removeprefix(prefix): value for name, value in given.items()}
    return given


def _only_heads(network: nn.Module, missing: list[str], foreign: list[str]) -> bool:
    """Returns whether network and file differ in the classifier only, which is trained anyway.

    The classifier is the last linear layer, or has one of the usual names.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    heads = tuple(f"{head}." for head in (*HEADS, *linear[-1:]))
    return all(name.startswith(heads) for name in (*missing, *foreign))


@torch.no_grad()
def _zero_new_classifier(network: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Sets the last linear layer to zero if its weights were not loaded (arXiv 2010.11929, 3.2).

    The random logits of some initializations are so large (8 for two classes and EfficientNet's
    1,280 features) that the first steps would destroy what the other layers know.
    """
    linear = [item for item in network.named_modules() if isinstance(item[1], nn.Linear)]
    for name, classifier in linear[-1:]:
        if f"{name}.weight" not in loaded:
            for parameter in classifier.parameters():
                parameter.zero_()


def _refuse_npz(name: str) -> None:
    if name.endswith(NPZ):
        raise CompressError(
            f"{name} is a NumPy archive, which only timm can convert; save it as a state dict, "
            "`torch.save(timm.create_model(NAME, checkpoint_path='FILE.npz').state_dict(), "
            "'FILE.pth')`, and set weights = 'FILE.pth'"
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
    )


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CompressError(f"there is no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        raw = torch.load(path, weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # untrusted bytes can cause any error
        reason = " ".join(str(error).split("\n", 1)[0].split()) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch suggests running it
            reason = "it was not saved by torch.save, or contains more than tensors"
        raise CompressError(f"{path} cannot be read as weights: {reason}") from None
    keys = [key for key in STATES if isinstance(raw, dict) and isinstance(raw.get(key), dict)]
    state = raw[keys[0]] if keys else raw
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CompressError(
            f"{path} has no state dict; save it with torch.save(model.state_dict(), path)"
        )
    return state


def _download(architecture: str, name: str) -> Mapping[str, Tensor]:
    try:
        if architecture.startswith(TIMM):
            return _from_timm(architecture.removeprefix(TIMM), name)
        return _from_torchvision(architecture, name)
    except (OSError, RuntimeError) as error:
        raise CompressError(
            f"the weights {name} of {architecture} could not be downloaded ({error}); use a file "
            "instead: weights = 'path/to/weights.pth'"
        ) from None


def _from_torchvision(architecture: str, name: str) -> Mapping[str, Tensor]:
    return _fetch(_torchvision_weights(architecture, name).url)


def _torchvision_weights(architecture: str, name: str) -> models.Weights:
    try:
        known = models.get_model_weights(architecture)
    except ValueError:
        raise CompressError(f"torchvision has no weights for {architecture!r}") from None
    if name not in known.__members__:
        raise CompressError(f"unknown weights {name!r}; {nearest(name, known.__members__)}")
    return known[name]


def _from_timm(architecture: str, name: str) -> Mapping[str, Tensor]:
    """Returns timm's weights, loaded here and converted by timm, which would unpickle some."""
    if name != PRETRAINED:
        raise CompressError(f"for timm, weights must be {PRETRAINED!r} or a file, got {name!r}")
    timm = import_timm()
    source = timm.get_pretrained_cfg(architecture)
    if source is None or not source.has_weights:
        raise CompressError(f"timm has no weights for {architecture!r}; use a file instead")
    if source.hf_hub_id:
        files = [source.hf_hub_filename] if source.hf_hub_filename else []
        given = timm.models.load_state_dict_from_hf(source.hf_hub_id, *files, weights_only=True)
    else:
        _refuse_npz(source.url)
        given = _fetch(source.url)
    overlay = {"state_dict": given}
    network = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay)
    return network.state_dict()  # type: ignore[no-any-return]


def _fetch(url: str) -> Mapping[str, Tensor]:
    """Returns a state dict from torch.hub's folder, downloading it if it is missing.

    torch.hub's own function unpickles any file there, even incomplete ones.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    expected = torch.hub.HASH_REGEX.search(name)  # start of its SHA-256: resnet18-f37072fd.pth
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), expected and expected[1])
    elif expected is not None and not _sha256(path).startswith(expected[1]):
        raise CompressError(
            f"{path} is damaged: its SHA-256 does not begin with {expected[1]} as its name says; "
            "remove it to download it again"
        )
    return _read_file(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
