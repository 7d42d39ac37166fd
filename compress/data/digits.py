"""The digits: handwritten, 8 x 8 px, shipped with scikit-learn."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import numpy as np

FILE = "sklearn/datasets/data/digits.csv.gz"
WHITE = 16
"""The brightest gray level."""


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Reads the file in scikit-learn's wheel; importing the package takes over a second.

    Returns:
        Images uint8 `[1797, 8, 8]`, 0..16, and labels uint8 `[1797]`.
    """
    path = Path(str(distribution("scikit-learn").locate_file(FILE)))
    rows = np.loadtxt(path, dtype=np.uint8, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
