"""Image folders: `PATH/train/CLASS/*`, with `val`, `test`, or both next to `train`.

`PATH/unlabeled/`, if there is one, holds more training images, for distillation only.
"""

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.cache import cached
from compress.data.config import DataConfig
from compress.data.image import range_warning
from compress.data.image_cache import (
    MULTI_FRAME,
    UNREADABLE,
    ImageCache,
    decode_all,
    open_image_cache,
)
from compress.data.preprocess import Preprocess
from compress.data.splits import without_labels
from compress.errors import DataError
from compress.files import readable_name
from compress.log import count_of, track

UNLABELED_FOLDER = "unlabeled"
MAX_UNREADABLE = 0.1
"""Maximum fraction of unreadable images; more indicate a problem with the whole dataset."""
NAMED = 5
"""Number of files or classes that a message lists; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Image files with their labels."""

    names: list[str]
    """Paths relative to the root."""
    labels: Tensor
    """int64 `[n_images]`."""
    rows: Tensor
    """int64 `[n_images]`: positions in the image cache."""

    def chosen(self, indices: Tensor) -> "Listing":
        """Returns the images at the given indices, int64 `[n]`."""
        names = [self.names[index] for index in indices.tolist()]
        return Listing(names=names, labels=self.labels[indices], rows=self.rows[indices])

    def without_labels(self) -> "Listing":
        """Returns the same images, unlabeled."""
        return dataclasses.replace(self, labels=without_labels(len(self.names)))


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The readable images of a dataset in folders."""

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, Listing]
    """`train`, and `val`, `test`, or both."""
    unlabeled: Listing
    """The images in `unlabeled/`, at any depth; often none."""
    unreadable: tuple[str, ...]
    """Skipped files, as paths relative to the root."""
    multi_frame: tuple[str, ...]
    """Files with several frames or pages, of which the first is used."""
    digest: str
    """Digest of all paths, sizes, and modification times, and of the skipped files."""
    cache: ImageCache | None
    """The decoded images; None if they are decoded when they are needed."""


@dataclass(frozen=True, kw_only=True)
class _Check:
    """Indices of unreadable and multi-frame images."""

    unreadable: tuple[int, ...]
    multi_frame: tuple[int, ...]


def read_folders(root: Path, spec: Preprocess, config: DataConfig) -> Folders:
    """Lists a dataset and decodes each image, into the image cache if there is room.

    Args:
        root: root folder of the dataset.
        spec: how images are decoded and shrunk.
        config: whether to cache images.

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
    listed: dict[str, Listing] = {}
    names: list[str] = []
    for split in splits:
        listed[split] = _list_split(root, split, class_names, content, len(names))
        names += listed[split].names
    unlabeled = _list_unlabeled(root, content, len(names))
    names += unlabeled.names
    digest = content.hexdigest()[:32]
    cache = open_image_cache(root, names, digest, spec, config)
    check = cached(_Check, "folders", digest, lambda: _check(root, names, spec, cache))
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
        unlabeled=_without(unlabeled, set(unreadable)),
        unreadable=unreadable,
        multi_frame=tuple(names[index] for index in check.multi_frame),
        digest=hashlib.sha256(json.dumps([digest, unreadable]).encode()).hexdigest()[:32],
        cache=cache,
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
    root: Path, split: str, class_names: Sequence[str], content: "hashlib._Hash", first: int
) -> Listing:
    """Lists a split's images; adds their names, sizes, and modification times to the digest."""
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
        found = _image_names(root, f"{split}/{folder}", content)
        names += found
        labels += [label_of[_class_name(folder)]] * len(found)
    return Listing(
        names=names,
        labels=torch.tensor(labels, dtype=torch.int64),
        rows=first + torch.arange(len(names)),
    )


def _list_unlabeled(root: Path, content: "hashlib._Hash", first: int) -> Listing:
    names = _image_names(root, UNLABELED_FOLDER, content)
    rows = first + torch.arange(len(names))
    return Listing(names=names, labels=without_labels(len(names)), rows=rows)


def _image_names(root: Path, folder: str, content: "hashlib._Hash") -> list[str]:
    """Lists the images below a folder, if it exists; adds them to the digest."""
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = sorted(_images_below(root, folder, known)) if (root / folder).is_dir() else []
    for name, facts in found:
        content.update(os.fsencode(name) + facts.encode())
    return [name for name, _ in found]


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


def _check(root: Path, names: Sequence[str], spec: Preprocess, cache: ImageCache | None) -> _Check:
    """Finds unreadable and multi-frame images; decodes all images unless they are cached."""
    if cache is None:
        decoded = track(decode_all(root, names, spec), "checking images", total=len(names))
        flags = np.array([flag for _, flag in decoded])
    else:
        flags = cache.flags
    return _Check(
        unreadable=tuple(np.flatnonzero(flags == UNREADABLE).tolist()),
        multi_frame=tuple(np.flatnonzero(flags == MULTI_FRAME).tolist()),
    )
