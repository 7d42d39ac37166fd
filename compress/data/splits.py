"""Splits in memory and in folders, with one interface: `batches`.

An augmented *view* of a split is determined by its seed and number: image `i` looks the same in
view `v`, whatever the batch order, number of threads, or epoch. Teacher logits for a view can
therefore be stored, and an interrupted run ends exactly like an uninterrupted one.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from compress.data.augment import Augmentation, augment, erase, random_resized_crop
from compress.data.image import read_image
from compress.data.image_cache import ImageCache
from compress.data.preprocess import (
    Preprocess,
    center_crop,
    channels_first,
    preprocess_image,
    shrink,
)
from compress.distributed import device

UNLABELED = -1
"""Label of images without one."""
AHEAD = 2
"""Batches decoded ahead while a GPU trains."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One augmentation of every image in a split."""

    seed: int
    number: int

    def generator(self, *salt: int) -> torch.Generator:
        """Returns a random generator that depends only on this view and `salt`."""
        state = np.random.SeedSequence((self.seed, self.number, *salt)).generate_state(1)
        return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some images of a split."""

    images: Tensor
    """uint8 `[N, channels, size, size]`."""
    labels: Tensor
    """int64 `[N]`; `UNLABELED` for images without a label."""
    index: Tensor
    """int64 `[N]`: indices of the images in their split."""


def batch_count(n_images: int, batch_size: int) -> int:
    """Returns how many batches `n_images` make, the last one possibly smaller."""
    return math.ceil(n_images / batch_size)


class Split(Protocol):
    """Images, most of them with labels."""

    @property
    def labels(self) -> Tensor:
        """int64 `[n_images]`; `UNLABELED` for images without a label."""
        ...

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, *, order: Tensor | None = None, view: View | None = None
    ) -> Iterator[Batch]:
        """Yields the images in `order` (default: all in sequence), augmented if a view is given."""
        ...


@dataclass(frozen=True, kw_only=True)
class TensorSplit:
    """A small split in memory; flips and shifts are made a batch at a time."""

    images: Tensor
    """uint8 `[n_images, channels, size, size]`."""
    labels: Tensor
    augmentation: Augmentation
    shift: int
    """Maximum shift in pixels."""

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> Self:
        """Returns the split with its images on a device, where its batches are made."""
        return dataclasses.replace(self, images=self.images.to(device))

    def batches(
        self, batch_size: int, *, order: Tensor | None = None, view: View | None = None
    ) -> Iterator[Batch]:
        """See `Split.batches`."""
        order = torch.arange(len(self)) if order is None else order
        change = None if view is None else self._augmentation(view)
        for index in order.split(batch_size):
            images = self.images[index]
            if change is not None:
                images = change(images, index)
            yield Batch(images=images, labels=self.labels[index], index=index)

    def _augmentation(self, view: View) -> Callable[[Tensor, Tensor], Tensor]:
        generator, n = view.generator(), len(self)
        flip = self.augmentation.flip
        mirrored = torch.rand(n, generator=generator) < (0.5 if flip else 0.0)
        top, left = torch.randint(0, 2 * self.shift + 1, (2, n), generator=generator)
        device = self.images.device  # drawn on the CPU for the same views on every device
        mirrored, top, left = mirrored.to(device), top.to(device), left.to(device)

        others = dataclasses.replace(self.augmentation, flip=False)

        def change(images: Tensor, index: Tensor) -> Tensor:
            images = torch.where(mirrored[index, None, None, None], images.flip(3), images)
            images = shifted_crop(images, top[index], left[index], margin=self.shift)
            if not others.does_something:
                return images
            pairs = zip(images.cpu(), index.tolist(), strict=True)
            changed = [_augmented(one, others, view.generator(item)) for one, item in pairs]
            return torch.stack(changed).to(device)

        return change


def _augmented(image: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Augments an image, uint8 `[channels, size, size]`."""
    gray = len(image) == 1
    changed = augment(
        Image.fromarray((image[0] if gray else image.permute(1, 2, 0)).numpy()), how, generator
    )
    return erase(torch.from_numpy(channels_first(changed).copy()), how.erasing, generator)


def shifted_crop(images: Tensor, top: Tensor, left: Tensor, *, margin: int) -> Tensor:
    """Pads each image with `margin` black pixels and crops its own window of the original size.

    Args:
        images: `[N, C, H, W]`.
        top: int64 `[N]`, first row of each window in the padded image, 0..2*margin.
        left: int64 `[N]`, first column.
        margin: padding in pixels.

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
    """Image files, decoded in threads, since Pillow releases the GIL.

    Processes would have to be forked from a large one or restarted every epoch.
    """

    root: Path
    names: Sequence[str]
    """Paths relative to the root; strings take a tenth of the memory of `Path`s."""
    labels: Tensor
    rows: Tensor
    """int64 `[n_images]`: positions in the cache."""
    cache: ImageCache | None
    preprocess: Preprocess
    augmentation: Augmentation
    min_scale: float
    threads: int

    def __len__(self) -> int:
        return len(self.names)

    def batches(
        self, batch_size: int, *, order: Tensor | None = None, view: View | None = None
    ) -> Iterator[Batch]:
        """See `Split.batches`."""
        order = torch.arange(len(self)) if order is None else order
        # With a GPU, the next batches are decoded during training. On a CPU, decoding and training
        # would compete for the cores; taking turns is faster.
        ahead = 0 if device().type == "cpu" else AHEAD
        waiting: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
        pool = ThreadPoolExecutor(self.threads)
        try:
            for index in order.split(batch_size):
                images = [pool.submit(self.image, item, view) for item in index.tolist()]
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
        image = self._decoded(index)
        if view is None:
            return torch.from_numpy(preprocess_image(image, self.preprocess))
        how, generator = self.augmentation, view.generator(index)
        if how.policy == "none":
            image = center_crop(image, self.preprocess)
        else:
            image = random_resized_crop(image, self.preprocess.size, self.min_scale, generator)
        image = augment(image, how, generator)
        return erase(torch.from_numpy(channels_first(image).copy()), how.erasing, generator)

    def _decoded(self, index: int) -> Image.Image:
        """Returns an image, shrunk: the same with and without a cache."""
        if self.cache is not None:
            return self.cache.image(int(self.rows[index]))
        spec, path = self.preprocess, self.root / self.names[index]
        return shrink(read_image(path, spec.mode, short_side=spec.resize), spec)


def joined(first: Split, second: Split) -> Split:
    """Returns the images of two splits of the same kind as one."""
    labels = torch.cat([first.labels, second.labels])
    if isinstance(first, TensorSplit) and isinstance(second, TensorSplit):
        images = torch.cat([first.images, second.images])
        return dataclasses.replace(first, images=images, labels=labels)
    assert isinstance(first, FolderSplit)
    assert isinstance(second, FolderSplit)
    names, rows = [*first.names, *second.names], torch.cat([first.rows, second.rows])
    return dataclasses.replace(first, names=names, labels=labels, rows=rows)


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Holds out the same fraction of each class.

    Args:
        labels: class of each image, int64 `[n]`.
        share: fraction of each class, in (0, 1); at least one image if it has two or more.
        seed: random seed.

    Returns:
        Two sorted int64 index tensors: the remaining and the held-out images.
    """
    generator = torch.Generator().manual_seed(seed)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        count = max(round(share * len(members)), int(len(members) > 1))
        taken[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~taken).nonzero().squeeze(1), taken.nonzero().squeeze(1)


def labeled_share(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Chooses the images whose labels are used.

    Args:
        labels: class of each image, int64 `[n]`.
        share: fraction of each class, in (0, 1]; at least one image.
        seed: random seed.

    Returns:
        Two sorted int64 index tensors: images with and without a label.
    """
    everything = torch.arange(len(labels))
    if share == 1:
        return everything, everything[:0]
    others, _ = stratified_split(labels, share, seed)
    others = others[labels.bincount()[labels[others]] > 1]
    labeled = torch.ones(len(labels), dtype=torch.bool)
    labeled[others] = False
    return everything[labeled], others


def without_labels(n_images: int) -> Tensor:
    """Returns the labels of unlabeled images, int64 `[n_images]`."""
    return torch.full((n_images,), UNLABELED)


def stratified_sample(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Draws a random sample with the class proportions of the whole.

    The first images of a folder would all be of the first classes.

    Args:
        labels: class of each image, int64 `[n]`.
        count: number of images; all if there are fewer.
        seed: random seed.

    Returns:
        Sorted indices, int64 `[min(count, n)]`.
    """
    generator = torch.Generator().manual_seed(seed)
    turn = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        ranks = torch.randperm(len(members), generator=generator)
        # The n-th image of a class is drawn when about n / class size of all images are.
        jitter = torch.rand((), generator=generator, dtype=torch.float64)
        turn[members[ranks]] = (torch.arange(len(members)) + jitter) / len(members)
    return turn.argsort(stable=True)[:count].sort().values


def calibration_order(split: Split, count: int, *, seed: int) -> Tensor:
    """Returns `count` random indices into a split, int64; all if it has fewer images."""
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]


def as_numpy(images: Tensor) -> np.ndarray:
    """Returns uint8 images as a contiguous NumPy array, for ONNX Runtime."""
    return images.contiguous().numpy()
