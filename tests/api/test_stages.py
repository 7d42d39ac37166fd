"""The library: networks and datasets of the user's own, without folders or cards."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import compress
from compress import api

MEAN, STD = 0.3, 0.38
SHORT: dict[str, Any] = {"epochs": 1, "min_steps": 20, "precision": "fp32"}


def network(width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        nn.MaxPool2d(2),
        *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has the default number of timing rounds."""
    monkeypatch.setattr("compress.measure.latency.SLICE_S", 0.001)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    images: np.ndarray = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    return images.repeat(2, 1).repeat(2, 2)


@pytest.fixture(scope="module")
def data(pixels: np.ndarray) -> compress.Data:
    normalized = (torch.from_numpy(pixels)[:, None] / 255 - MEAN) / STD
    labels = torch.from_numpy(load_digits().target)
    train = TensorDataset(normalized[:1400], labels[:1400])
    test = TensorDataset(normalized[1400:], labels[1400:])
    return compress.Data.from_datasets(train=train, test=test, mean=[MEAN], std=[STD])


def test_a_network_object_passes_all_stages(
    data: compress.Data, pixels: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    own = network(16)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    teacher = compress.train(own, data=data, out=tmp_path / "run", **SHORT)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    student = compress.distill(network(32), teacher=teacher, data=data, **SHORT)
    pruned = compress.prune(student, macs_ratio=0.7, latency_ratio=1, iterations=1, **SHORT)
    assert pruned.report.macs < student.report.macs
    path = tmp_path / "small.onnx"
    result = compress.export(compress.quantize(pruned, calib=64), path)
    assert result.run == tmp_path / "run"
    assert result.report.size_bytes == path.stat().st_size
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {"images": pixels[1400:, None]})
    top1 = 100 * (logits.argmax(1) == load_digits().target[1400:]).mean()
    assert compress.evaluate(path, data).top1 == pytest.approx(top1)
    assert result.report.top1 == pytest.approx(top1)
    rows = compress.benchmark(teacher, path, rounds=2).rows
    assert [row.size_bytes for row in rows] == [teacher.report.size_bytes, path.stat().st_size]
    assert "4-export" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


def test_a_trained_network_is_measured_and_quantized_as_it_is(data: compress.Data) -> None:
    torch.manual_seed(0)
    own = network(8)
    result = compress.quantize(own, data=data, calib=64)
    with torch.no_grad():
        images = next(iter(data.test.batches(len(data.test)))).images
        logits = own.eval()((images / 255 - MEAN) / STD)
    top1 = 100 * (logits.argmax(1) == data.test.labels).float().mean().item()
    (teacher,) = result.run.glob("0-teacher")
    assert compress.evaluate(teacher, data).top1 == pytest.approx(top1, abs=0.3)
    with pytest.raises(compress.CompressError, match="the network is int8; run .*onnx in ONNX"):
        _ = result.model


def test_the_network_comes_back_as_the_module_that_was_given(data: compress.Data) -> None:
    own = network(8)
    result = compress.train(own, data=data, epochs=0)
    assert type(result.model) is nn.Sequential
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(result.model(images), own.eval()(images))


def test_mistakes_are_explained(data: compress.Data, tmp_path: Path) -> None:
    own = network(4)
    with pytest.raises(compress.CompressError, match="prune has no setting 'ratio'; "):
        compress.prune(own, data=data, ratio=0.5)
    with pytest.raises(compress.CompressError, match="pass data=, the images and labels"):
        compress.quantize(own)
    with pytest.raises(compress.CompressError, match="must return a tensor of shape"):
        compress.train(nn.Sequential(nn.Flatten(), nn.Linear(256, 7)), data=data)
    result = compress.train(own, data=data, epochs=0)
    with pytest.raises(compress.CompressError, match="split must be one of train, validation"):
        compress.evaluate(result, data, split="tset")
    with pytest.raises(compress.CompressError, match="its next stage goes there too"):
        compress.quantize(result, out=tmp_path / "elsewhere")
    with pytest.raises(AttributeError, match="no attribute 'squeeze'"):
        _ = compress.squeeze


def test_all_names_of_the_library_are_known_without_importing_it() -> None:
    assert set(api.__all__) == compress.LIBRARY
    code = "import sys, compress; from compress import host; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_can_be_silenced(
    data: compress.Data, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("compress")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    compress.train(network(4), data=data, epochs=0)
    shown = capsys.readouterr()
    monkeypatch.undo()
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    assert shown.out == shown.err == ""
