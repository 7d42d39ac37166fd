"""Reads map-style datasets of (image, label), such as torchvision's, into memory."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.data.preprocess import Preprocess, preprocess_image
from compress.data.splits import UNLABELED
from compress.errors import DataError
from compress.log import track

SAMPLED = 32
"""Images that are looked at to see whether tensors are normalized."""
CHANNELS = (1, 3)


class Dataset(Protocol):
    """A map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int]:
        """Returns an image and its label.

        The image is a PIL image; uint8 `[channels, height, width]` (tensor) or
        `[height, width(, channels)]` (array); or a float tensor `[channels, height, width]`, scaled
        to 0..1 or normalized.
        """
        ...


class Images(Protocol):
    """A map-style dataset of images, alone or with labels; see `Dataset` for the images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class WithoutLabels:
    """The images of a dataset, with `UNLABELED` as their label."""

    images: Images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        item = self.images[index]
        return (item[0] if isinstance(item, tuple | list) else item), UNLABELED


def read_dataset(
    dataset: Dataset, spec: Preprocess, *, name: str, normalized: bool
) -> tuple[Tensor, Tensor]:
    """Reads a whole dataset.

    Args:
        dataset: images of one size, unless they are PIL images, which are resized and cropped.
        spec: size and channels; mean and deviation of normalized images.
        name: of the split, for messages.
        normalized: whether float images are normalized, else they are scaled to 0..1.

    Returns:
        uint8 images `[n, channels, size, size]` and int64 labels `[n]`.

    Raises:
        DataError: there are no images, or one has another size or type, or values out of range.
    """
    count = len(dataset)
    if not count:
        raise DataError(f"the {name} dataset is empty; give it images")
    shape = (spec.channels, spec.size, spec.size)
    images = torch.empty((count, *shape), dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for index in track(range(count), f"reading {name} images", total=count):
        image, label = dataset[index]
        try:
            converted = to_uint8(image, spec, normalized=normalized)
        except DataError as error:
            raise DataError(f"{name} image {index} {error}") from None
        if tuple(converted.shape) != shape:
            raise DataError(
                f"{name} image {index} has shape {tuple(converted.shape)}, but {shape} is "
                "needed; resize the images to one size, or return PIL images"
            )
        images[index], labels[index] = converted, int(label)
    return images, labels


def is_normalized(dataset: Dataset) -> bool:
    """Returns whether float images have negative values, as only normalized ones do."""
    few = (dataset[index][0] for index in range(min(SAMPLED, len(dataset))))
    return any(bool((image < 0).any()) for image in few if _is_float(image))


def shape_of(dataset: Dataset) -> tuple[int, int] | None:
    """Returns channels and size of a dataset's first image; None for the size of PIL images.

    Raises:
        DataError: there is none, it is not an image, or not square.
    """
    if not len(dataset):
        raise DataError("the training dataset is empty; give it labeled images")
    image = dataset[0][0]
    if isinstance(image, Image.Image):
        return None
    array = _channels_first(image)
    channels, height, width = array.shape
    if height != width:
        raise DataError(
            f"images must be square, got {height} x {width}; crop them, or return PIL images"
        )
    return channels, height


def to_uint8(image: object, spec: Preprocess, *, normalized: bool) -> Tensor:
    """Returns an image as uint8 `[channels, height, width]`.

    Args:
        image: see `Dataset`.
        spec: preprocessing; undone if the image is normalized.
        normalized: whether float images are normalized, else they are scaled to 0..1.

    Raises:
        DataError: it is not an image, or its values are out of range.
    """
    if isinstance(image, Image.Image):
        return torch.from_numpy(preprocess_image(image.convert(spec.mode), spec))
    array = _channels_first(image)
    if array.dtype == torch.uint8:
        return array
    if normalized:
        mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (spec.mean, spec.std))
        array = array * std + mean
    pixels = (255 * array).round()
    if not bool(((pixels >= -1) & (pixels <= 256)).all()):
        low, high = float(array.min()), float(array.max())
        what = "undoing mean and std gives values" if normalized else "has values"
        raise DataError(
            f"{what} from {low:.3g} to {high:.3g}, but 0 to 1 is expected; pass the mean and std "
            "that the dataset normalizes with"
        )
    return pixels.clamp(0, 255).to(torch.uint8)


def _is_float(image: object) -> bool:
    return isinstance(image, Tensor) and image.is_floating_point()


def _channels_first(image: object) -> Tensor:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        image = torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1)
    if isinstance(image, Tensor) and (image.dtype == torch.uint8 or _is_float(image)):
        if image.ndim == 2:
            image = image[None]
        if image.ndim == 3 and image.shape[0] in CHANNELS:
            return image
    raise DataError(
        "must be a PIL image, a uint8 array [height, width, channels], or a uint8 or float tensor "
        f"[channels, height, width] with 1 or 3 channels, got {_described(image)}"
    )


def _described(image: object) -> str:
    if isinstance(image, Tensor | np.ndarray):
        return f"{image.dtype} of shape {tuple(image.shape)}"
    return type(image).__name__


def class_names_of(dataset: Dataset, labels: Tensor) -> tuple[str, ...]:
    """Returns the classes that a dataset lists (`classes`, as torchvision's do), else numbers."""
    listed = getattr(dataset, "classes", None)
    return tuple(map(str, listed if listed is not None else range(int(labels.max()) + 1)))
