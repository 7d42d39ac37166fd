"""Comparison of an exported file with torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress.data.splits import Split, as_numpy, batch_count
from compress.host import allowed_cores
from compress.log import track
from compress.measure.runtime import open_session, run_session

ODD_BATCHES = (1, 2, 7)
"""Batch sizes on which an export with a frozen batch dimension fails."""
BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Agreement of torch and ONNX Runtime on the same images."""

    top1_agreement: float
    """Percent of images for which both predict the same class."""
    max_difference: float
    """Largest difference between two logits."""
    n_images: int
    max_difference_by_batch: dict[str, float]
    """Largest logit difference by batch size, for small batches."""


@torch.no_grad()
def check_parity(model: nn.Module, path: Path, split: Split) -> Parity:
    """Compares a model with its exported file on every image of a split; labels are not read."""
    session = open_session(path, threads=allowed_cores())
    model.eval()
    agreed, largest = 0, 0.0
    by_batch: dict[str, float] = {}
    n_batches = batch_count(len(split), BATCH)
    for batch in track(split.batches(BATCH), "comparing with torch", total=n_batches):
        expected = model(batch.images).numpy()
        got = run_session(session, as_numpy(batch.images))
        agreed += int((expected.argmax(1) == got.argmax(1)).sum())
        largest = max(largest, float(np.abs(expected - got).max()))
        if not by_batch:
            for size in ODD_BATCHES:
                few = run_session(session, as_numpy(batch.images[:size]))
                by_batch[str(size)] = float(np.abs(expected[: len(few)] - few).max())
    return Parity(
        top1_agreement=100 * agreed / len(split),
        max_difference=largest,
        n_images=len(split),
        max_difference_by_batch=by_batch,
    )
