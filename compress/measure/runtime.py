"""ONNX Runtime sessions, all made in one place so that all are measured alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from compress.errors import CompressError
from compress.onnx_file import INPUT, OUTPUT


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
        raise CompressError(f"ONNX Runtime cannot load {path}: {_reason(error)}") from None


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


def run_session(session: ort.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Returns float32 logits `[N, classes]` for uint8 pixels `[N, C, H, W]`.

    Raises:
        CompressError: the file cannot do that.
    """
    (logits,) = run_file(session, {INPUT: images}, [OUTPUT])
    if not isinstance(logits, np.ndarray) or logits.ndim != 2 or len(logits) != len(images):
        raise CompressError(
            f"the ONNX file returns {np.shape(logits)} for {len(images)} images, not their logits; "
            "export it anew"
        )
    return logits


def run_file(
    session: ort.InferenceSession, feed: Mapping[str, np.ndarray], outputs: list[str] | None = None
) -> list[Any]:
    """Returns what a file makes of its inputs; all its outputs, or those named.

    Raises:
        CompressError: it cannot be run on them.
    """
    try:
        return session.run(outputs, feed)  # type: ignore[no-any-return]
    except Exception as error:  # see `open_session`
        raise CompressError(f"ONNX Runtime cannot run the file: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
