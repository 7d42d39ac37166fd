"""Sources of networks: our own, torchvision, timm, or the user's code."""

import copy
import dataclasses
import hashlib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from compress.architectures.code_digest import code_digest
from compress.architectures.plain_cnn import PlainCNN
from compress.architectures.scaled_resnet import ScaledResNet
from compress.architectures.spec import ModelSpec
from compress.errors import CompressError
from compress.settings import nearest, shown
from compress.trust import failed, import_trusted

TIMM = "timm:"
OBJECT = "object:"
"""Prefix of networks that were given as objects; see `give_network`."""
TIMM_FLOOR = (1, 0, 26)
"""Oldest supported version; older ones unpickle weights files."""
CHOOSE_WEIGHTS = ("_", "weights", "pretrained", "checkpoint")
"""Prefixes of arguments that load something; no network takes such arguments itself."""
PLAIN: Mapping[str, Mapping[str, Any]] = {
    "simple_cnn": {"widths": (64, 64), "hidden": 256},
    "complex_cnn": {"widths": (64, 64, 128, 256), "hidden": 512},
}
OWN = ("scaled_resnet", *PLAIN)


def construct(spec: ModelSpec) -> nn.Module:
    """Builds a spec's network, which takes normalized images, from its source.

    Raises:
        CompressError: the architecture is unknown or rejects the arguments, an argument loads
            something, timm is missing or too old, or the user's code is not trusted.
    """
    name, preprocess = spec.architecture, spec.preprocess
    classes = {"num_classes": len(spec.class_names)}
    if name.startswith(TIMM):
        return _from_timm(spec, {**classes, "in_chans": preprocess.channels})
    if name.startswith(OBJECT):
        return copy.deepcopy(_given(name))
    if ":" in name:
        return _call(spec, import_trusted(name, "network"), classes)
    shape = {"classes": len(spec.class_names), "channels": preprocess.channels}
    if name == "scaled_resnet":
        return _call(spec, ScaledResNet, {**shape, "small_stem": spec.stem == "small"})
    if name in PLAIN:
        return _call(spec, partial(PlainCNN, **PLAIN[name]), {**shape, "size": preprocess.size})
    return _from_torchvision(spec, classes)


_GIVEN: dict[str, nn.Module] = {}


def give_network(network: nn.Module) -> str:
    """Returns an architecture that names a network object, for specs and cards of this process.

    Its name depends on code, structure, and weights only, so that finished stages are found again.

    Args:
        network: takes normalized images `[N, C, H, W]`, returns logits `[N, classes]`; copied.
    """
    digest = hashlib.sha256(str(network).encode())
    for code in sorted(_sources(network)):
        digest.update(code.encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    name = f"{OBJECT}{type(network).__name__}-{digest.hexdigest()[:16]}"
    _GIVEN[name] = copy.deepcopy(network).cpu()
    return name


def _sources(network: nn.Module) -> set[str]:
    """Returns the code of a network's classes, where there is some, except for torch's."""
    classes = {type(module) for module in network.modules()}
    found = set()
    for kind in classes:
        if not kind.__module__.startswith("torch."):
            with suppress(OSError, TypeError):  # typed at a prompt
                found.add(inspect.getsource(kind))
    return found


def _given(name: str) -> nn.Module:
    try:
        return _GIVEN[name]
    except KeyError:
        raise CompressError(
            f"the network {name.removeprefix(OBJECT)} was given to compress as a Python object; "
            "give it again in this program, or use its ONNX file"
        ) from None


def torchvision_names() -> list[str]:
    """Returns the names of torchvision's classification models."""
    return models.list_models(module=models)  # type: ignore[no-any-return]


def _from_torchvision(spec: ModelSpec, arguments: dict[str, Any]) -> nn.Module:

    name, size = spec.architecture, spec.preprocess.size
    if name not in torchvision_names():
        known = [*OWN, *torchvision_names()]
        raise CompressError(
            f"unknown architecture {name!r}; {nearest(name, known)}; also timm:NAME, and "
            "package.module:factory with --trust"
        )
    if name.startswith("vit_"):
        arguments["image_size"] = size
    if name.startswith("maxvit_"):
        arguments["input_size"] = (size, size)
    if name in ("googlenet", "inception_v3"):  # the second head is for training only
        arguments |= {"aux_logits": False, "init_weights": True}
    builder = models.get_model_builder(name)
    # The builder's own parameters concern weights; others are passed to the network.
    return _call(spec, builder, arguments, refused=inspect.signature(builder).parameters)


def import_timm() -> Any:
    """Returns the timm package.

    Raises:
        CompressError: it is not installed, or too old.
    """
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError:
        raise CompressError(
            "timm is not installed: run `.venv/bin/uv pip install timm` or `pip install timm`"
        ) from None
    if tuple(map(int, re.findall(r"\d+", timm.__version__)[:3])) < TIMM_FLOOR:
        floor = ".".join(map(str, TIMM_FLOOR))
        raise CompressError(
            f"timm {timm.__version__} is too old: it runs code from weights files; install "
            f"timm>={floor}"
        )
    return timm


def _from_timm(spec: ModelSpec, arguments: Mapping[str, Any]) -> nn.Module:
    timm, name = import_timm(), spec.architecture.removeprefix(TIMM)
    if not timm.is_model(name):
        raise CompressError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
    # The parameters of timm's two factories concern weights and wrappers of the network.
    refused = {
        *inspect.signature(timm.create_model).parameters,
        *inspect.signature(timm.models.build_model_with_cfg).parameters,
        *("features_only", "feature_cls", "out_indices", "pruned", "device", "dtype"),
    }

    def create(**given: Any) -> nn.Module:
        return timm.create_model(name, **given)  # type: ignore[no-any-return]

    sized = {"img_size": spec.preprocess.size, **spec.arguments}
    with suppress(CompressError):  # only some networks take a size
        return _call(dataclasses.replace(spec, arguments=sized), create, arguments, refused=refused)
    return _call(spec, create, arguments, refused=refused)


def user_code(architecture: str) -> str:
    """Returns the SHA-256 of the code behind a `package.module:factory`, else an empty string.

    Raises:
        CompressError: it is not trusted, or cannot be imported.
    """
    if architecture.startswith((TIMM, OBJECT)) or ":" not in architecture:
        return ""
    import_trusted(architecture, "network")
    name = architecture.partition(":")[0]
    top = sys.modules[name.partition(".")[0]]
    paths = [top.__file__] if top.__file__ else list(top.__path__)  # a folder without __init__.py
    path = Path(str(paths[0]))
    root = path.parent.parent if path.name == "__init__.py" else path.parent
    return code_digest(name, root)


def _call(
    spec: ModelSpec, factory: Any, arguments: Mapping[str, Any], *, refused: Iterable[str] = ()
) -> nn.Module:
    """Calls a factory with the spec's arguments and those given by the data.

    Raises:
        CompressError: an argument is refused, not plain data, or unknown to the factory.
    """
    _check_arguments(spec, {*arguments, *refused})
    try:
        network = factory(**spec.arguments, **arguments)
    except CompressError:
        raise
    except TypeError as error:
        taken = ", ".join(
            name
            for name in inspect.signature(factory).parameters
            if name not in ("weights", "progress", "kwargs", "given", *arguments)
        )
        given = f"the arguments it is called with ({', '.join(arguments)})"
        if spec.arguments:
            given = shown(dict(spec.arguments))
        allowed = f"its arguments: {taken}" if taken else str(error)
        raise CompressError(f"{spec.architecture} does not accept {given}; {allowed}") from None
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, NotImplementedError) and torch.get_default_device().type == "meta":
            raise  # not the network's fault: `build` retries on the CPU
        if ":" in spec.architecture:  # not our bug
            raise failed(spec.architecture, "network", error) from error
        if spec.arguments:
            raise CompressError(
                f"{spec.architecture} cannot be built with {shown(dict(spec.arguments))}: {error}"
            ) from error
        raise
    if not isinstance(network, nn.Module):
        raise CompressError(
            f"{spec.architecture} must return a torch.nn.Module, got {type(network)}"
        )
    return network


def _check_arguments(spec: ModelSpec, refused: set[str]) -> None:
    """Ensures that the arguments of a card or checkpoint only describe the network."""
    trusted = ":" in spec.architecture and not spec.architecture.startswith(TIMM)
    for name, value in spec.arguments.items():
        if name in refused or (not trusted and name.startswith(CHOOSE_WEIGHTS)):
            raise CompressError(
                f"{spec.architecture} does not accept the argument {name!r} from a card; remove "
                "it: weights are set by the card's `weights`, and classes, channels, and size "
                "follow from the data"
            )
        if not _is_plain(value):
            raise CompressError(
                f"{spec.architecture}: the argument {name} must be a number, string, boolean, or "
                f"list of these, got {shown(value)}"
            )


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int | str)  # a bool is an int
