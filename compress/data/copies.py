"""Finds images that occur in two splits, byte for byte, which inflates scores."""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

TAIL = 4096
"""Bytes at the end of files to compare before whole files."""
CHUNK = 256
"""Files that a thread processes at a time."""


def copied_images(splits: Mapping[str, Tensor]) -> dict[tuple[str, str], int]:
    """Counts duplicates between splits held in memory; see `copied_files`.

    Args:
        splits: images by split name, uint8 `[n, channels, height, width]`.
    """
    return _shared(
        {
            name: np.array([_digest(image.tobytes()) for image in images.numpy()], np.uint64)
            for name, images in splits.items()
        }
    )


def copied_files(root: Path, splits: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], int]:
    """Counts the files that occur in two splits.

    Opens only files of equal size, and reads only those with equal ends.

    Args:
        root: root folder of the dataset.
        splits: image paths relative to the root, by split name.

    Returns:
        For each pair of splits, in order: how many of the second's files are also in the first.
    """
    indices = {name: np.arange(len(files)) for name, files in splits.items()}
    keys: dict[str, np.ndarray] = {}
    for key in (_size, _tail, _whole):
        keys = {name: _keys(root, splits[name], indices[name], key) for name in splits}
        for name in splits:
            others = np.concatenate([keys[other] for other in splits if other != name])
            indices[name] = indices[name][np.isin(keys[name], others)]
    return _shared(keys)


def _shared(keys: Mapping[str, np.ndarray]) -> dict[tuple[str, str], int]:
    return {
        (first, second): int(np.isin(keys[second], keys[first]).sum())
        for first, second in itertools.combinations(keys, 2)
    }


def _keys(
    root: Path, names: Sequence[str], indices: np.ndarray, key: Callable[[Path], int]
) -> np.ndarray:
    """Returns a key of each of the given files, uint64."""
    parts = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
    with ThreadPoolExecutor() as pool:
        keys = pool.map(lambda part: [key(root / names[index]) for index in part], parts)
        return np.fromiter(itertools.chain.from_iterable(keys), np.uint64, len(indices))


def _size(path: Path) -> int:
    return path.stat().st_size


def _tail(path: Path) -> int:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        return _digest(size.to_bytes(8, "big") + file.read())


def _whole(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:8], "big")


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
