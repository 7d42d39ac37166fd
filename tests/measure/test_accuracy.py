from pathlib import Path

import numpy as np
import pytest
import torch

from compress.data.dataset import Data
from compress.measure.accuracy import accuracy, predict_split
from compress.onnx_file import export_onnx
from tests.conftest import settled, student_spec


def test_accuracy_counts_right_answers() -> None:
    scores = accuracy(np.array([1, 2, 3, 3]), np.array([1, 2, 3, 0]))
    assert (scores.top1, scores.n_images) == (75.0, 4)


def test_accuracy_by_class_is_told_where_classes_differ_in_size() -> None:
    labels = np.array([0] * 9 + [1] * 3 + [4])
    predicted = np.array([0] * 9 + [1, 0, 0] + [0])
    scores = accuracy(predicted, labels)
    assert scores.top1 == pytest.approx(1000 / 13)
    assert scores.balanced_top1 == pytest.approx(100 * (1 + 1 / 3 + 0) / 3)  # none of 2 and 3
    assert accuracy(labels[7:], labels[7:]).balanced_top1 == 100
    assert accuracy(np.zeros(4, int), np.array([0, 0, 1, 1])).balanced_top1 is None


def test_predictions_of_the_file_are_torchs(digits: Data, tmp_path: Path) -> None:
    spec = student_spec(digits)
    model = settled(spec, digits.train)
    export_onnx(model, spec, tmp_path / "model.onnx", digest="", stage="distill")
    predicted = predict_split(tmp_path / "model.onnx", digits.test)
    images = torch.cat([batch.images for batch in digits.test.batches(500)])
    with torch.no_grad():
        assert np.array_equal(predicted, model(images).argmax(1).numpy())
