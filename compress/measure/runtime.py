"""ONNX Runtime sessions, all made in one place so that all are measured alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from compress.errors import CompressError
from compress.export.onnx_file import INPUT, OUTPUT


def open_session(path: Path, *, threads: int) -> ort.InferenceSession:
    """Opens a file for CPU inference.

    Raises:
        CompressError: ONNX Runtime cannot load it.
    """
    try:
        return ort.InferenceSession(
            as_model(path), session_options(threads=threads), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime raises its own types for every fault of the file
        reason = str(error).splitlines()[0]
        raise CompressError(f"ONNX Runtime cannot load {path}: {reason}") from None


def as_model(path: Path) -> Path | bytes:
    """Returns what ONNX Runtime opens: a file's content if its path is not UTF-8, else the path."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return path


def session_options(*, threads: int) -> ort.SessionOptions:
    """Returns the options that all sessions have."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    return options


def run_session(session: ort.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    """Returns float32 logits `[N, classes]` for uint8 pixels `[N, C, H, W]`."""
    (logits,) = session.run([OUTPUT], {INPUT: pixels})
    assert isinstance(logits, np.ndarray)
    return logits
