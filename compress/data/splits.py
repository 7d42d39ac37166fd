"""The two kinds of split, in memory and in folders, behind one function: `batches`.

An augmented *view* of a split is fixed by its seed and number: image `i` looks the same in view
`v` whatever the batch order, the number of threads or the epoch. So a teacher's answers to a view
can be stored and reused, and an interrupted run continues exactly as an undisturbed one.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.data.augment import random_flip, random_resized_crop
from compress.data.image import read_image
from compress.data.preprocess import Preprocess, channels_first, preprocess_image
from compress.distributed import device

AHEAD = 2
"""Batches that are decoded while one trains on a GPU."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One augmented look at every image of a split."""

    seed: int
    number: int

    def generator(self, *salt: int) -> torch.Generator:
        """Returns a random generator that depends on this view and `salt` only."""
        state = np.random.SeedSequence((self.seed, self.number, *salt)).generate_state(1)
        return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some images of a split."""

    images: Tensor
    """uint8 `[N, channels, size, size]`."""
    labels: Tensor
    """int64 `[N]`."""
    index: Tensor
    """int64 `[N]`: the images' places in their split."""


def batch_count(n_images: int, batch_size: int) -> int:
    """Returns how many batches `n_images` make, the last one possibly smaller."""
    return math.ceil(n_images / batch_size)


class Split(Protocol):
    """Labeled images."""

    @property
    def labels(self) -> Tensor:
        """int64 `[n_images]`."""
        ...

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, *, order: Tensor | None = None, view: View | None = None
    ) -> Iterator[Batch]:
        """Yields the images in `order` (default: all, in place), plain or as a view shows them."""
        ...


@dataclass(frozen=True, kw_only=True)
class TensorSplit:
    """A small set, held in memory; augmented by a mirror and a shift, for the batch at once."""

    images: Tensor
    """uint8 `[n_images, channels, size, size]`."""
    labels: Tensor
    flip: bool
    shift: int
    """Pixels."""

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> TensorSplit:
        """Returns the split with its images in a device's memory; batches are made there."""
        return dataclasses.replace(self, images=self.images.to(device))

    def batches(
        self, batch_size: int, *, order: Tensor | None = None, view: View | None = None
    ) -> Iterator[Batch]:
        """See `Split.batches`."""
        order = torch.arange(len(self)) if order is None else order
        augment = None if view is None else self._augmentation(view)
        for index in order.split(batch_size):
            images = self.images[index]
            if augment is not None:
                images = augment(images, index)
            yield Batch(images=images, labels=self.labels[index], index=index)

    def _augmentation(self, view: View) -> Callable[[Tensor, Tensor], Tensor]:
        generator, n = view.generator(), len(self)
        mirrored = torch.rand(n, generator=generator) < (0.5 if self.flip else 0.0)
        top, left = torch.randint(0, 2 * self.shift + 1, (2, n), generator=generator)
        device = self.images.device  # drawn on the CPU: the same views everywhere
        mirrored, top, left = mirrored.to(device), top.to(device), left.to(device)

        def augment(images: Tensor, index: Tensor) -> Tensor:
            images = torch.where(mirrored[index, None, None, None], images.flip(3), images)
            return shifted_crop(images, top[index], left[index], margin=self.shift)

        return augment


def shifted_crop(images: Tensor, top: Tensor, left: Tensor, *, margin: int) -> Tensor:
    """Pads each image with `margin` black pixels and cuts its own window of the old size.

    Args:
        images: `[N, C, H, W]`.
        top: int64 `[N]`, first row of each window in the padded image, 0..2*margin.
        left: int64 `[N]`, first column.
        margin: pixels on each side.

    Returns:
        `[N, C, H, W]`.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (margin,) * 4)
    device = images.device
    rows = top[:, None] + torch.arange(height, device=device)
    columns = left[:, None] + torch.arange(width, device=device)
    return padded[
        torch.arange(n, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


@dataclass(frozen=True, kw_only=True)
class FolderSplit:
    """Image files, decoded by threads: Pillow works outside of Python's lock.

    Processes would have to be forked from one that is large, or started anew for each epoch.
    """

    root: Path
    names: Sequence[str]
    """Paths below the root; as text they take a tenth of the memory of `Path`s."""
    labels: Tensor
    preprocess: Preprocess
    flip: bool
    min_scale: float
    threads: int

    def __len__(self) -> int:
        return len(self.names)

    def batches(
        self, batch_size: int, *, order: Tensor | None = None, view: View | None = None
    ) -> Iterator[Batch]:
        """See `Split.batches`."""
        order = torch.arange(len(self)) if order is None else order
        # Beside a GPU the next batches are decoded while one trains; on a CPU both would share the
        # cores, and one after the other is faster.
        ahead = 0 if device().type == "cpu" else AHEAD
        waiting: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
        pool = ThreadPoolExecutor(self.threads)
        try:
            for index in order.split(batch_size):
                images = [pool.submit(self.image, place, view) for place in index.tolist()]
                waiting.append((index, images))
                if len(waiting) > ahead:
                    yield self._batch(*waiting.popleft())
            while waiting:
                yield self._batch(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, index: Tensor, images: Sequence[Future[Tensor]]) -> Batch:
        whole = torch.stack([image.result() for image in images])
        return Batch(images=whole, labels=self.labels[index], index=index)

    def image(self, index: int, view: View | None) -> Tensor:
        """Returns one image as uint8 `[channels, size, size]`."""
        image = read_image(self.root / self.names[index], self.preprocess.mode)
        if view is None:
            return torch.from_numpy(preprocess_image(image, self.preprocess))
        generator = view.generator(index)
        image = random_resized_crop(image, self.preprocess.size, self.min_scale, generator)
        if self.flip:
            image = random_flip(image, generator)
        return torch.from_numpy(channels_first(image).copy())


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits off the same share of each class.

    Args:
        labels: int64 `[n]`.
        share: of each class, in (0, 1); at least one image of a class that has two.
        seed: fixes the choice.

    Returns:
        Two sorted int64 index tensors: what stays, and what was split off.
    """
    generator = torch.Generator().manual_seed(seed)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        count = max(round(share * len(members)), int(len(members) > 1))
        taken[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~taken).nonzero().squeeze(1), taken.nonzero().squeeze(1)


def stratified_sample(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Draws images at random, of each class in proportion to its size.

    The first images of a folder are all of the first classes.

    Args:
        labels: int64 `[n]`.
        count: of images; all if there are fewer.
        seed: fixes the draw.

    Returns:
        Sorted int64 `[min(count, n)]`, places in `labels`.
    """
    generator = torch.Generator().manual_seed(seed)
    turn = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        places = torch.randperm(len(members), generator=generator)
        # The n-th image of a class is taken when about n / its size of all images are.
        jitter = torch.rand((), generator=generator, dtype=torch.float64)
        turn[members[places]] = (torch.arange(len(members)) + jitter) / len(members)
    return turn.argsort(stable=True)[:count].sort().values
