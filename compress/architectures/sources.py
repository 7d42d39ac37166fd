"""Where networks come from: ours, torchvision, timm, or code of the user's."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compress.architectures.plain_cnn import PlainCNN
from compress.architectures.scaled_resnet import ScaledResNet
from compress.architectures.spec import ModelSpec
from compress.code_digest import code_digest
from compress.errors import CompressError
from compress.settings import nearest
from compress.trust import is_trusted

TIMM = "timm:"
PLAIN: Mapping[str, Mapping[str, Any]] = {
    "simple_cnn": {"widths": (64, 64), "hidden": 256},
    "complex_cnn": {"widths": (64, 64, 128, 256), "hidden": 512},
}
OWN = ("scaled_resnet", *PLAIN)


def construct(spec: ModelSpec) -> nn.Module:
    """Builds a spec's network, which takes normalised images, as its source makes it.

    Raises:
        CompressError: there is no such architecture, it does not take the arguments, timm is not
            installed, or the user's code is not trusted.
    """
    name, preprocess = spec.architecture, spec.preprocess
    classes = {"num_classes": len(spec.class_names)}
    if name.startswith(TIMM):
        return _from_timm(spec, {**classes, "in_chans": preprocess.channels})
    if ":" in name:
        return _call(spec, _factory(name), classes)
    shape = {"classes": len(spec.class_names), "channels": preprocess.channels}
    if name == "scaled_resnet":
        return _call(spec, ScaledResNet, {**shape, "small_stem": spec.stem == "small"})
    if name in PLAIN:
        return _call(spec, partial(PlainCNN, **PLAIN[name]), {**shape, "size": preprocess.size})
    return _from_torchvision(spec, classes)


def torchvision_names() -> list[str]:
    """Returns the names of torchvision's classification models."""
    from torchvision import models

    return models.list_models(module=models)  # type: ignore[no-any-return]


def _from_torchvision(spec: ModelSpec, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models

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
    if name in ("googlenet", "inception_v3"):  # no second head: it is for training
        arguments |= {"aux_logits": False, "init_weights": True}
    return _call(spec, models.get_model_builder(name), arguments)


def import_timm() -> Any:
    """Returns the timm package.

    Raises:
        CompressError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise CompressError(
            "timm's models need timm: `.venv/bin/uv pip install timm` or `pip install timm`"
        ) from None


def _from_timm(spec: ModelSpec, arguments: Mapping[str, Any]) -> nn.Module:
    timm, name = import_timm(), spec.architecture.removeprefix(TIMM)
    if not timm.is_model(name):
        raise CompressError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
    size = spec.preprocess.size
    try:  # transformers are built for one image size, and only they take it
        return timm.create_model(name, **{"img_size": size, **arguments, **spec.arguments})  # type: ignore[no-any-return]
    except TypeError:
        return _call(spec, lambda **given: timm.create_model(name, **given), arguments)


def _factory(reference: str) -> Any:
    """Imports `package.module:factory`, also from the working folder."""
    if not is_trusted():
        raise CompressError(
            f"the network {reference!r} is code outside of compress, which is imported only with "
            "--trust; add it if you trust that code"
        )
    module, _, attribute = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CompressError(
            f"cannot import the network {reference!r}: {error}; it is written "
            "package.module:factory and found from the working folder"
        ) from None
    except Exception as error:
        raise _failed(reference, error) from error


def user_code(architecture: str) -> str:
    """Returns the SHA-256 of the code that a `package.module:factory` is made of, else nothing.

    Raises:
        CompressError: it is not trusted, or cannot be imported.
    """
    if architecture.startswith(TIMM) or ":" not in architecture:
        return ""
    _factory(architecture)
    name = architecture.partition(":")[0]
    top = sys.modules[name.partition(".")[0]]
    places = [top.__file__] if top.__file__ else list(top.__path__)  # a folder without __init__.py
    place = Path(str(places[0]))
    is_package = place.is_dir() or place.name == "__init__.py"
    root = place.parent if place.is_dir() or not is_package else place.parent.parent
    return code_digest(name, root)


def _failed(reference: str, error: Exception) -> CompressError:
    """Returns what to tell of an error in the user's code."""
    return CompressError(
        f"the network {reference!r} cannot be made, {type(error).__name__}: {error}; `compress "
        "--debug ...` shows where"
    )


def _call(spec: ModelSpec, factory: Any, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        network = factory(**{**spec.arguments, **arguments})
    except TypeError as error:
        taken = ", ".join(
            name
            for name in inspect.signature(factory).parameters
            if name not in ("weights", "progress", "kwargs", "given", *arguments)
        )
        refused = dict(spec.arguments) or f"what it is called with ({', '.join(arguments)})"
        allowed = f"its arguments: {taken}" if taken else str(error)
        raise CompressError(f"{spec.architecture} does not take {refused}; {allowed}") from None
    except Exception as error:
        if ":" in spec.architecture:  # not a fault of ours
            raise _failed(spec.architecture, error) from error
        raise
    if not isinstance(network, nn.Module):
        raise CompressError(
            f"{spec.architecture} must return a torch.nn.Module, it returned {type(network)}"
        )
    return network
