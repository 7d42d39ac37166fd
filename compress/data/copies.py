"""Images that are in two splits, byte for byte: the scores of those flatter."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from compress.files import cache_folder, write_text

TAIL = 4096
"""Bytes at the end of files that are compared before whole files are."""
CHUNK = 256
"""Files a thread looks at in one go."""


def copied_images(splits: Mapping[str, Tensor]) -> dict[tuple[str, str], int]:
    """Counts images of sets in memory; see `copied_files`.

    Args:
        splits: uint8 `[n, channels, height, width]`, by name.
    """
    return _shared(
        {
            name: np.array([_digest(image.tobytes()) for image in images.numpy()], np.uint64)
            for name, images in splits.items()
        }
    )


def copied_files(root: Path, splits: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], int]:
    """Counts the files of each split that another one has too.

    Only files of equal size are opened, and only those read to which another ends alike.

    Args:
        root: of the data set.
        splits: image files below it, by the split's name.

    Returns:
        By two splits, in their order: how many of the second's files the first has too.
    """
    places = {name: np.arange(len(files)) for name, files in splits.items()}
    keys: dict[str, np.ndarray] = {}
    for key in (_size, _tail, _whole):
        keys = {name: _keys(root, splits[name], places[name], key) for name in splits}
        for name in splits:
            others = np.concatenate([keys[other] for other in splits if other != name])
            places[name] = places[name][np.isin(keys[name], others)]
    return _shared(keys)


def cached_copies(
    root: Path, splits: Mapping[str, Sequence[str]], fingerprint: str
) -> dict[tuple[str, str], int]:
    """Counts them as `copied_files` does, once for a data set and its splits.

    Args:
        root: of the data set.
        splits: image files below it, by the split's name.
        fingerprint: changes with the images and with which split each is in.
    """
    pairs = list(itertools.combinations(splits, 2))
    cache = cache_folder() / "folders" / f"copies-{fingerprint}.json"
    with suppress(OSError, ValueError, TypeError):  # none yet, or damaged: look again
        counts = [int(count) for count in json.loads(cache.read_text(encoding="utf-8"))]
        return dict(zip(pairs, counts, strict=True))
    found = copied_files(root, splits)
    write_text(cache, json.dumps([found[pair] for pair in pairs]))
    return found


def _shared(keys: Mapping[str, np.ndarray]) -> dict[tuple[str, str], int]:
    return {
        (first, second): int(np.isin(keys[second], keys[first]).sum())
        for first, second in itertools.combinations(keys, 2)
    }


def _keys(
    root: Path, names: Sequence[str], places: np.ndarray, key: Callable[[Path], int]
) -> np.ndarray:
    """Returns a key of each of the files at some places, uint64."""
    parts = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda part: [key(root / names[place]) for place in part], parts)
        return np.fromiter(itertools.chain.from_iterable(found), np.uint64, len(places))


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
