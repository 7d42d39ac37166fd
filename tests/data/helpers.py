"""Image folders for the tests of data."""

from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data


def write_set(root: Path, counts: dict[str, dict[str, int]]) -> Path:
    """Different images of noise, 16 px, by split and class."""
    generator = np.random.default_rng(0)
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.bmp")
    return root


def load(root: Path) -> Data:
    return load_data(f"imagefolder:{root}", DataConfig(size=16), seed=0)
