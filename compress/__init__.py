"""Turn an image classifier into a small, fast ONNX file, and measure every stage.

The library in five lines (docs/api.md has more):

    data = compress.Data.from_datasets(train=train, test=test, mean=mean, std=std)
    small = compress.distill(student, teacher=model, data=data)
    small = compress.prune(small, latency_ratio=0.5)
    result = compress.export(compress.quantize(small), "model.onnx")
    print(result.report.top1, result.report.latency_ms_p50, result.report.size_bytes)
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.api import *

__version__ = "0.1.0"
LIBRARY = frozenset(
    [
        "CompressError",
        "Data",
        "DataConfig",
        "Result",
        "benchmark",
        "distill",
        "evaluate",
        "export",
        "load_data",
        "prune",
        "quantize",
        "run",
        "train",
    ]
)
"""Names of `compress.api`, known without importing it; a test compares."""


def __getattr__(name: str) -> Any:
    """Imports the library when it is used: torch takes seconds to import.

    Not for any other name: `from compress import host` asks for it too.
    """
    if name not in LIBRARY:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    return getattr(import_module("compress.api"), name)


class _StageModule(ModuleType):
    """A package that shares its name with a function of the library, and can be called as such."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        api = import_module("compress.api")
        return getattr(api, self.__name__.rpartition(".")[2])(*arguments, **named)


def make_callable(package: str) -> None:
    """Lets `compress.distill(...)` call the library although `compress.distill` is a package."""
    sys.modules[package].__class__ = _StageModule
