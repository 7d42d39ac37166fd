from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from compress.checkpoint import INT8_FILE, load_checkpoint
from compress.data.dataset import Data
from compress.data.splits import as_numpy
from compress.export.parity import BATCH, ODD_BATCHES, check_parity
from compress.int8.restore import load_model


def test_every_image_counts(finished_run: Path, digits: Data) -> None:
    """A float network and an int8 file differ enough to be told apart."""
    model = load_model(load_checkpoint(finished_run / "2-prune")).eval()
    path = finished_run / "4-export" / INT8_FILE
    images = torch.cat([batch.images for batch in digits.test.batches(BATCH)])
    session = onnxruntime.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: as_numpy(images)})
    with torch.no_grad():
        expected = model(images).numpy()

    parity = check_parity(model, path, digits.test)
    differences = np.abs(expected - got).max(axis=1)
    assert parity.n_images == len(digits.test)
    same = expected.argmax(1) == got.argmax(1)
    assert parity.top1_agreement == pytest.approx(100 * same.mean(), abs=0.5)
    assert parity.max_difference == pytest.approx(differences.max(), rel=0.05)
    assert parity.max_difference_by_batch == {
        str(size): pytest.approx(differences[:size].max(), rel=0.05) for size in ODD_BATCHES
    }
