"""ONNX Runtime sessions, all with the same options."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from compress.errors import CompressError
from compress.measure.engines import as_model, session_options
from compress.onnx_file import INPUT, OUTPUT


def open_session(model: Path | bytes, *, threads: int) -> ort.InferenceSession:
    """Opens an ONNX file, or its content, for inference on the CPU.

    Raises:
        CompressError: ONNX Runtime cannot load it.
    """
    return _load(model, session_options(threads=threads))


def optimized_graph(path: Path) -> onnx.GraphProto:
    """Returns the graph that ONNX Runtime makes of a file, before layouts that depend on the CPU.

    Raises:
        CompressError: ONNX Runtime cannot load it.
    """
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        _load(path, options)
        return onnx.load(optimized, load_external_data=False).graph


def run_session(session: ort.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Returns float32 logits `[N, classes]` for uint8 images `[N, C, H, W]`.

    Raises:
        CompressError: the file does not compute logits of images.
    """
    (logits,) = run_file(session, {INPUT: images}, [OUTPUT])
    if not isinstance(logits, np.ndarray) or logits.ndim != 2 or len(logits) != len(images):
        raise CompressError(
            f"the ONNX file returns {np.shape(logits)} for {len(images)} images, not their logits; "
            "export it again"
        )
    return logits


def run_file(
    session: ort.InferenceSession, feed: Mapping[str, np.ndarray], outputs: list[str] | None = None
) -> list[Any]:
    """Returns a file's outputs, all or the named ones.

    Raises:
        CompressError: it cannot be run on the inputs.
    """
    try:
        return session.run(outputs, feed)  # type: ignore[no-any-return]
    except Exception as error:  # see `open_session`
        raise CompressError(f"ONNX Runtime cannot run the file: {_reason(error)}") from None


def _load(model: Path | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    content = as_model(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many error types
        name = model if isinstance(model, Path) else "the model"
        raise CompressError(f"ONNX Runtime cannot load {name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
