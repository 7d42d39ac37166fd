"""Which network a checkpoint holds, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from compress.data.preprocess import Preprocess
from compress.errors import CompressError

WEIGHT_FILES = (".safetensors", ".pth", ".pt")
"""Endings of files that weights are read from."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything needed to build an untrained network again."""

    architecture: str
    """One of ours (`scaled_resnet`, `simple_cnn`, `complex_cnn`), any classification model of
    torchvision by name, `timm:NAME`, or `package.module:factory`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the architecture, e.g. `{"width": 0.25}`."""
    stem: Literal["small", "large"]
    """`small`: the first convolution does not stride, for images under 64 px."""
    activation: Literal["own", "relu"] = "own"
    """`relu`: in place of HardSwish, SiLU and GELU."""
    code: str = ""
    """SHA-256 of the user's code that a `package.module:factory` is made of; else empty."""
    class_names: tuple[str, ...]
    preprocess: Preprocess

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise CompressError(f"a classifier has two classes or more, got {self.class_names}")
