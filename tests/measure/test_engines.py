"""The same network in several runtimes."""

import warnings
from pathlib import Path

import numpy as np
import torch

from compress.data.dataset import Data
from compress.data.splits import as_numpy
from compress.measure.engines import load_engine
from compress.onnx_file import INPUT, export_onnx
from tests.conftest import settled, student_spec


def test_torch_computes_what_onnx_runtime_does(digits: Data, tmp_path: Path) -> None:
    spec = student_spec(digits, depths=[1])
    model = settled(spec, digits.train).eval()
    images = as_numpy(next(iter(digits.test.batches(7))).images)
    export_onnx(model, spec, tmp_path / "model.onnx", digest="", stage="distill")
    example, shapes = torch.from_numpy(images[:2]), {0: torch.export.Dim("batch")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter
        program = torch.export.export(model, (example,), dynamic_shapes=(shapes,))
        torch.export.save(program, tmp_path / "model.pt2")
    for batch in (1, 7):
        feed = {INPUT: images[:batch]}
        (expected,) = load_engine(tmp_path / "model.onnx", "onnxruntime", feed, threads=1)(feed)
        (got,) = load_engine(tmp_path / "model.pt2", "torch", feed, threads=1)(feed)
        assert got.shape == (batch, 10)
        assert np.allclose(got, expected, atol=1e-4)
