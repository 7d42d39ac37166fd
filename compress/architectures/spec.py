"""The description of a network, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from compress.data.preprocess import Preprocess
from compress.errors import CompressError

WEIGHT_FILES = (".safetensors", ".pth", ".pt")
"""Suffixes of weights files."""


Stem = Literal["small", "large"]
Activation = Literal["own", "relu"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything needed to build an untrained network."""

    architecture: str
    """One of ours (`scaled_resnet`, `simple_cnn`, `complex_cnn`), any classification model of
    torchvision by name, `timm:NAME`, or `package.module:factory`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the architecture, e.g. `{"width": 0.25}`."""
    stem: Stem
    """`small`: the first convolution has no stride, for images under 64 px."""
    activation: Activation = "own"
    """`relu` replaces HardSwish, SiLU, and GELU."""
    code: str = ""
    """SHA-256 of the user's code behind a `package.module:factory`; else empty."""
    class_names: tuple[str, ...]
    preprocess: Preprocess

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise CompressError(f"a classifier needs two or more classes, got {self.class_names}")
