"""Image folders: `PATH/train/CLASS/*`, and `val` or `test` beside `train`, or both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from compress.data.image import range_warning, read_image
from compress.errors import DataError
from compress.paths import cache_folder, write_text
from compress.progress import track

MAX_UNREADABLE = 0.1
"""Share of unreadable images above which something is wrong with the set, not with a file."""
NAMED_UNREADABLE = 5
"""Unreadable files named in the warning; all are counted."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The readable images of a data set in folders."""

    class_names: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    """By split (`train`, and `val` or `test` or both): path and class index."""
    unreadable: tuple[Path, ...]
    digest: str
    """Of all paths, sizes and modification times, and of which images are left out."""


def read_folders(root: Path) -> Folders:
    """Lists a data set and checks that each image can be decoded (once; then remembered).

    Raises:
        DataError: the folders are not laid out as expected, or too many images are unreadable.
    """
    layout = f"expected {root}/train/CLASS/IMAGE, and {root}/val or {root}/test likewise"
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; {layout}")
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in splits or len(splits) == 1:
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise DataError(f"{layout}; found {', '.join(found) or 'no folders'}")
    class_names = tuple(sorted(path.name for path in (root / "train").iterdir() if path.is_dir()))
    if len(class_names) < 2:
        raise DataError(
            f"{root}/train holds {len(class_names)} folders of classes, it needs two or more"
        )
    listed = {split: _list_split(root / split, class_names) for split in splits}
    everything = [path for files in listed.values() for path, _ in files]
    listing = _digest(root, everything)
    left_out = _unreadable(root, everything, cache_folder() / "folders" / f"{listing}.json")
    digest = hashlib.sha256(json.dumps([listing, left_out]).encode()).hexdigest()[:32]
    unreadable = [root / name for name in left_out]
    if len(unreadable) > MAX_UNREADABLE * len(everything):
        raise DataError(
            f"{len(unreadable)} of {len(everything)} images under {root} cannot be read, "
            f"{_named(unreadable)}; repair or remove them"
        )
    bad = set(unreadable)
    readable = {
        split: [(path, label) for path, label in files if path not in bad]
        for split, files in listed.items()
    }
    for split, files in readable.items():
        missing = _missing(class_names, files)
        if split == "train" and missing:
            raise DataError(
                f"{root}/train has no readable image of: {missing}; add some or remove the folder"
            )
        if not files:
            raise DataError(f"{root / split} has no readable image")
    return Folders(
        class_names=class_names, files=readable, unreadable=tuple(unreadable), digest=digest
    )


def folder_warnings(folders: Folders) -> Iterator[str]:
    """Yields what is odd about folders that can be used all the same."""
    if count := len(folders.unreadable):
        yield f"{count} unreadable image{'s' * (count > 1)} left out: {_named(folders.unreadable)}"
    for split, files in folders.files.items():
        if missing := _missing(folders.class_names, files):
            yield f"{split}/ has no image of: {missing}; its top-1 says nothing about them"
    if warning := range_warning([path for path, _ in folders.files["train"]]):
        yield warning


def _missing(class_names: Sequence[str], files: Sequence[tuple[Path, int]]) -> str:
    """Returns the classes that a split lacks, in words; empty if there are none."""
    there = {label for _, label in files}
    return ", ".join(name for label, name in enumerate(class_names) if label not in there)


def _named(paths: Sequence[Path]) -> str:
    shown = ", ".join(str(path) for path in paths[:NAMED_UNREADABLE])
    more = len(paths) - NAMED_UNREADABLE
    return f"{shown} and {more} more" if more > 0 else shown


def _list_split(folder: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        if class_folder.name not in class_names:
            raise DataError(f"{class_folder} is a class that train/ does not have")
        label = class_names.index(class_folder.name)
        images = (path for path in class_folder.rglob("*") if path.suffix.lower() in known)
        files += [(path, label) for path in sorted(images)]
    return files


def _digest(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(os.fsencode(path.relative_to(root)))
        digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _unreadable(root: Path, files: Sequence[Path], cache: Path) -> list[str]:
    """Returns the images that cannot be read, by their paths below the root.

    Args:
        root: of the data set; it may have been moved since the cache was written.
        files: all images below it.
        cache: remembers the answer for a listing.
    """
    with suppress(OSError, ValueError, TypeError, KeyError):  # none yet, or damaged: look again
        return [str(name) for name in json.loads(cache.read_text(encoding="utf-8"))["unreadable"]]
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        checks = track(pool.map(_is_readable, files), "checking images", total=len(files))
        pairs = zip(files, checks, strict=True)
        unreadable = [str(path.relative_to(root)) for path, good in pairs if not good]
    write_text(cache, json.dumps({"unreadable": unreadable}))
    return unreadable


def _is_readable(path: Path) -> bool:
    try:
        read_image(path, "RGB")
    except DataError:
        return False
    return True
