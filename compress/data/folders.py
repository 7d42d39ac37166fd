"""Image folders: `PATH/train/CLASS/*`, and `val` or `test` beside `train`, or both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from compress.data.image import range_warning, read_image
from compress.errors import DataError
from compress.files import cache_folder, readable_name, write_text
from compress.log import track

MAX_UNREADABLE = 0.1
"""Share of unreadable images above which something is wrong with the set, not with a file."""
NAMED = 5
"""Files or classes that a message names; all are counted."""
CHECKED_AT_ONCE = 1024
"""Images handed to the threads together: a million waiting ones would take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Some images of a data set in folders."""

    names: list[str]
    """Paths below the set's root."""
    labels: Tensor
    """int64 `[n_images]`."""

    def chosen(self, places: Tensor) -> Listing:
        """Returns the images at some places."""
        names = [self.names[place] for place in places.tolist()]
        return Listing(names=names, labels=self.labels[places])


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The readable images of a data set in folders."""

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, Listing]
    """`train`, and `val` or `test` or both."""
    unreadable: tuple[str, ...]
    """Paths below the root."""
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
    class_names = tuple(
        sorted(_class_name(path.name) for path in (root / "train").iterdir() if path.is_dir())
    )
    if len(class_names) < 2:
        raise DataError(
            f"{root}/train holds {len(class_names)} folders of classes, it needs two or more"
        )
    content = hashlib.sha256()
    listed = {split: _list_split(root, split, class_names, content) for split in splits}
    names = [name for split in listed.values() for name in split.names]
    digest = content.hexdigest()[:32]
    unreadable = _unreadable(root, names, cache_folder() / "folders" / f"{digest}.json")
    if len(unreadable) > MAX_UNREADABLE * len(names):
        raise DataError(
            f"{len(unreadable)} of {len(names)} images under {root} cannot be read, "
            f"{_named([str(root / name) for name in unreadable])}; repair or remove them"
        )
    readable = {split: _without(one, set(unreadable)) for split, one in listed.items()}
    for split, one in readable.items():
        missing = _missing(class_names, one)
        if split == "train" and missing:
            raise DataError(
                f"{root}/train has no readable image of: {missing}; add some or remove the folder"
            )
        if not one.names:
            raise DataError(f"{root / split} has no readable image")
    return Folders(
        root=root,
        class_names=class_names,
        splits=readable,
        unreadable=tuple(unreadable),
        digest=hashlib.sha256(json.dumps([digest, unreadable]).encode()).hexdigest()[:32],
    )


def folder_warnings(folders: Folders) -> Iterator[str]:
    """Yields what is odd about folders that can be used all the same."""
    if count := len(folders.unreadable):
        named = _named([str(folders.root / name) for name in folders.unreadable])
        yield f"{count} unreadable image{'s' * (count > 1)} left out: {named}"
    for split, listing in folders.splits.items():
        if missing := _missing(folders.class_names, listing):
            yield f"{split}/ has no image of: {missing}; its top-1 says nothing about them"
    if warning := range_warning(folders.root, folders.splits["train"].names):
        yield warning


def _missing(class_names: Sequence[str], listing: Listing) -> str:
    """Returns the classes that a split lacks, in words; empty if there are none."""
    there = set(listing.labels.unique().tolist())
    return _named([name for label, name in enumerate(class_names) if label not in there])


def _named(items: Sequence[str]) -> str:
    shown = ", ".join(items[:NAMED])
    more = len(items) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _without(listing: Listing, left_out: set[str]) -> Listing:
    kept = torch.tensor([name not in left_out for name in listing.names], dtype=torch.bool)
    return listing if bool(kept.all()) else listing.chosen(kept.nonzero().squeeze(1))


def _list_split(
    root: Path, split: str, class_names: Sequence[str], content: hashlib._Hash
) -> Listing:
    """Lists a split's images; the digest takes in their names, sizes and modification times."""
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    label_of = {name: label for label, name in enumerate(class_names)}
    names: list[str] = []
    counts = [0] * len(class_names)
    with os.scandir(root / split) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    for folder in folders:
        if _class_name(folder) not in label_of:
            raise DataError(
                f"{root / split / folder} is a class that train/ does not have; add training "
                "images of it, or move it away"
            )
        found = sorted(_images_below(root, f"{split}/{folder}", known))
        for name, facts in found:
            content.update(os.fsencode(name) + facts.encode())
        names += [name for name, _ in found]
        counts[label_of[_class_name(folder)]] = len(found)
    labels = torch.arange(len(class_names)).repeat_interleave(torch.tensor(counts))
    return Listing(names=names, labels=labels)


def _class_name(folder: str) -> str:
    """Returns a class's name, which is text in every file and program; a folder's need not be."""
    return readable_name(os.fsencode(folder))


def _images_below(root: Path, folder: str, suffixes: Set[str]) -> Iterator[tuple[str, str]]:
    """Yields each image's path below the root, and its size and modification time."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _images_below(root, name, suffixes)
            elif Path(entry.name).suffix.lower() in suffixes:
                facts = entry.stat()
                yield name, f"\0{facts.st_size}\0{facts.st_mtime_ns}\n"


def _unreadable(root: Path, names: Sequence[str], cache: Path) -> list[str]:
    """Returns the images that cannot be read, by their paths below the root.

    Args:
        root: of the data set; it may have been moved since the cache was written.
        names: all images below it.
        cache: remembers the answer for a listing.
    """
    with suppress(OSError, ValueError, TypeError, KeyError):  # none yet, or damaged: look again
        return [str(name) for name in json.loads(cache.read_text(encoding="utf-8"))["unreadable"]]

    def checked() -> Iterator[bool]:
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
            for start in range(0, len(names), CHECKED_AT_ONCE):
                few = names[start : start + CHECKED_AT_ONCE]
                yield from pool.map(lambda name: _is_readable(root / name), few)

    checks = track(checked(), "checking images", total=len(names))
    unreadable = [name for name, good in zip(names, checks, strict=True) if not good]
    write_text(cache, json.dumps({"unreadable": unreadable}))
    return unreadable


def _is_readable(path: Path) -> bool:
    try:
        read_image(path, "RGB")
    except DataError:
        return False
    return True
