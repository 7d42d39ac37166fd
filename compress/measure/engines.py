"""Runs a model in ONNX Runtime, or in a runtime that it is compared with."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

Runtime = Literal["onnxruntime", "openvino", "torch"]
Feed = Mapping[str, np.ndarray]
"""A model's inputs, by name."""
Engine = Callable[[Feed], list[Any]]
"""Returns a model's outputs."""


def load_engine(file: Path, runtime: Runtime, feed: Feed, *, threads: int) -> Engine:
    """Loads a model for inference on the CPU.

    Args:
        file: an ONNX file; for torch, a program of `torch.export.save` with one input and output.
        runtime: what to run it in.
        feed: inputs of the shapes that it will run on.
        threads: of ONNX Runtime and OpenVINO. Torch has one setting for the whole process.
    """
    match runtime:
        case "openvino":
            return _load_openvino(file, feed, threads)
        case "torch":
            return _load_torch(file)
        case _:
            return _load_onnxruntime(file, threads)


def _load_onnxruntime(file: Path, threads: int) -> Engine:
    options = session_options(threads=threads)
    session = ort.InferenceSession(as_model(file), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def _load_openvino(file: Path, feed: Feed, threads: int) -> Engine:
    core = import_module("openvino").Core()
    model = core.read_model(as_model(file))
    # Faster than with an open batch size.
    model.reshape({name: list(array.shape) for name, array in feed.items()})
    # It would pin this thread to a core, and with it everything else that runs in the process.
    options = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **options})
    return lambda feed: list(compiled(dict(feed)).values())


def _load_torch(file: Path) -> Engine:
    torch = import_module("torch")
    network = torch.export.load(file).module(check_guards=False)

    def run(feed: Feed) -> list[Any]:
        (images,) = feed.values()
        with torch.inference_mode():
            return [network(torch.from_numpy(images)).numpy()]

    return run


def as_model(path: Path) -> Path | bytes:
    """Returns what to pass to a runtime: the path, or the content if the path is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return path


def session_options(*, threads: int) -> ort.SessionOptions:
    """Returns the options of all sessions in ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    return options
