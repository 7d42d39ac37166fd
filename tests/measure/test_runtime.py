import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from compress.errors import CompressError
from compress.measure.engines import as_model, session_options
from compress.measure.runtime import open_session, run_session

DOUBLE = """<ir_version: 9, opset_import: ["": 18]>
double (float[batch, 2] images) => (float[batch, 2] logits) { logits = Add(images, images) }"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "double.onnx"
    onnx.save(onnx.parser.parse_model(DOUBLE), file)
    return file


def test_a_session_runs_with_the_given_threads(path: Path) -> None:
    options = session_options(threads=3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    session = open_session(path, threads=1)
    images = np.array([[1, 2]], np.float32)
    assert run_session(session, images).tolist() == [[2, 4]]


def test_a_file_that_fails_is_explained_in_a_line(path: Path) -> None:
    session = open_session(path, threads=1)
    with pytest.raises(CompressError, match=r"^ONNX Runtime cannot run the file: .+") as caught:
        run_session(session, np.zeros((1, 5), np.float32))
    assert "\n" not in str(caught.value)
    path.write_bytes(b"not a model")
    with pytest.raises(CompressError, match=rf"^ONNX Runtime cannot load {path}: .+"):
        open_session(path, threads=1)


def test_a_path_that_is_not_utf_8_is_passed_as_bytes(path: Path) -> None:
    odd = path.rename(path.with_name(os.fsdecode(b"\xff.onnx")))
    assert as_model(odd) == odd.read_bytes()
    session = open_session(odd, threads=1)
    assert run_session(session, np.ones((1, 2), np.float32)).tolist() == [[2, 2]]
    assert as_model(path) == path
