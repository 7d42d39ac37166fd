"""Image folders: `PATH/train/CLASS/*`, with `val`, `test`, or both next to `train`."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from compress.cache import cached
from compress.data.image import decode_image, range_warning
from compress.errors import DataError
from compress.files import readable_name
from compress.log import count_of, track

MAX_UNREADABLE = 0.1
"""Maximum fraction of unreadable images; more indicate a problem with the whole dataset."""
NAMED = 5
"""Number of files or classes that a message lists; the rest are counted."""
CHECKED_AT_ONCE = 1024
"""Images queued for the threads at a time; queuing a million would take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Image files with their labels."""

    names: list[str]
    """Paths relative to the root."""
    labels: Tensor
    """int64 `[n_images]`."""

    def chosen(self, indices: Tensor) -> Listing:
        """Returns the images at the given indices, int64 `[n]`."""
        names = [self.names[index] for index in indices.tolist()]
        return Listing(names=names, labels=self.labels[indices])


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The readable images of a dataset in folders."""

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, Listing]
    """`train`, and `val`, `test`, or both."""
    unreadable: tuple[str, ...]
    """Skipped files, as paths relative to the root."""
    multi_frame: tuple[str, ...]
    """Files with several frames or pages, of which the first is used."""
    digest: str
    """Digest of all paths, sizes, and modification times, and of the skipped files."""


@dataclass(frozen=True, kw_only=True)
class _Check:
    """Indices of unreadable and multi-frame images."""

    unreadable: tuple[int, ...]
    multi_frame: tuple[int, ...]


def read_folders(root: Path) -> Folders:
    """Lists a dataset and checks that each image can be decoded; the check is cached.

    Raises:
        DataError: the layout is wrong, or too many images are unreadable.
    """
    layout = f"expected {root}/train/CLASS/IMAGE, and the same in {root}/val or {root}/test"
    if not root.is_dir():
        raise DataError(f"folder {root} does not exist; {layout}")
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in splits or len(splits) == 1:
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise DataError(f"{layout}; found {', '.join(found) or 'no folders'}")
    class_names = tuple(
        sorted({_class_name(path.name) for path in (root / "train").iterdir() if path.is_dir()})
    )
    if len(class_names) < 2:
        raise DataError(
            f"{root}/train has {count_of(len(class_names), 'class folder')}; at least two are "
            "needed"
        )
    content = hashlib.sha256()
    listed = {split: _list_split(root, split, class_names, content) for split in splits}
    names = [name for split in listed.values() for name in split.names]
    digest = content.hexdigest()[:32]
    check = cached(_Check, "folders", digest, lambda: _check(root, names))
    unreadable = tuple(names[index] for index in check.unreadable)
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
                f"{root}/train has no readable images of: {missing}; add some or remove the folder"
            )
        if not one.names:
            raise DataError(f"{root / split} has no readable images")
    return Folders(
        root=root,
        class_names=class_names,
        splits=readable,
        unreadable=unreadable,
        multi_frame=tuple(names[index] for index in check.multi_frame),
        digest=hashlib.sha256(json.dumps([digest, unreadable]).encode()).hexdigest()[:32],
    )


def folder_warnings(folders: Folders) -> Iterator[str]:
    """Yields warnings about folders, in a fixed order."""
    if count := len(folders.unreadable):
        named = _named([str(folders.root / name) for name in folders.unreadable])
        yield f"{count_of(count, 'unreadable image')} skipped: {named}"
    if count := len(folders.multi_frame):
        named = _named([str(folders.root / name) for name in folders.multi_frame])
        yield f"only the first frame is used in {count_of(count, 'multi-frame image')}: {named}"
    for split, listing in folders.splits.items():
        if missing := _missing(folders.class_names, listing):
            yield f"{split}/ has no images of: {missing}; its top-1 does not cover them"
    if warning := range_warning(folders.root, folders.splits["train"].names):
        yield warning


def _missing(class_names: Sequence[str], listing: Listing) -> str:
    """Returns the classes that a split lacks, for a message; empty if it has all."""
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
    """Lists a split's images; adds their names, sizes, and modification times to the digest."""
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    label_of = {name: label for label, name in enumerate(class_names)}
    names: list[str] = []
    labels: list[int] = []
    with os.scandir(root / split) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    for folder in sorted(folders, key=_class_name):
        if _class_name(folder) not in label_of:
            raise DataError(
                f"{root / split / folder} is a class that is missing from train/; add training "
                "images of it, or move it elsewhere"
            )
        found = sorted(_images_below(root, f"{split}/{folder}", known))
        for name, facts in found:
            content.update(os.fsencode(name) + facts.encode())
        names += [name for name, _ in found]
        labels += [label_of[_class_name(folder)]] * len(found)
    return Listing(names=names, labels=torch.tensor(labels, dtype=torch.int64))


def _class_name(folder: str) -> str:
    """Returns the class name of a folder: valid text, in Unicode's composed form (NFC).

    File systems and archives disagree about the form, so folders that differ only in it are merged.
    """
    return unicodedata.normalize("NFC", readable_name(os.fsencode(folder)))


def _images_below(root: Path, folder: str, suffixes: Set[str]) -> Iterator[tuple[str, str]]:
    """Yields each image's path relative to the root, and its size and modification time."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _images_below(root, name, suffixes)
            elif Path(entry.name).suffix.lower() in suffixes:
                facts = entry.stat()
                yield name, f"\0{facts.st_size}\0{facts.st_mtime_ns}\n"


def _check(root: Path, names: Sequence[str]) -> _Check:
    """Decodes all images."""

    def checked() -> Iterator[bool | None]:
        with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while decoding
            for start in range(0, len(names), CHECKED_AT_ONCE):
                few = names[start : start + CHECKED_AT_ONCE]
                yield from pool.map(lambda name: _has_more_frames(root / name), few)

    results = list(track(checked(), "checking images", total=len(names)))
    return _Check(
        unreadable=tuple(index for index, result in enumerate(results) if result is None),
        multi_frame=tuple(index for index, result in enumerate(results) if result),
    )


def _has_more_frames(path: Path) -> bool | None:
    """Returns whether a file has several frames; None if it cannot be read."""
    try:
        return decode_image(path, "RGB").has_more_frames
    except DataError:
        return None
