"""The library: the stages as functions of networks and datasets."""

from compress.api.files import benchmark, evaluate
from compress.api.recipes import run
from compress.api.stages import Result, distill, export, prune, quantize, train
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.errors import CompressError

__all__ = [
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
