"""Preprocessing, shared by training, calibration, scoring, and the ONNX file."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field

from compress.data.config import MAX_SIDE
from compress.data.image import Mode
from compress.errors import CompressError

Interpolation = Literal["bilinear", "bicubic"]

SMALLEST_STD = 1e-3
"""Smallest accepted deviation, of pixels scaled to 0..1; networks that take 0..255 have 1/255."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the network's input.

    An image is decoded to 1 or 3 channels (see `image.py`), its short side resized to `resize`
    (antialiased), and the center `size` x `size` cropped, giving uint8
    `[channels, size, size]`. Normalization, `(pixel / 255 - mean) / std`, is the first operation of
    every network and part of the exported graph.
    """

    size: int
    """Side of the square input in pixels."""
    resize: int
    """Length of the short side before the center crop, in pixels."""
    interpolation: Interpolation = "bilinear"
    """Of the resizing; antialiased."""
    channels: int
    mean: tuple[float, ...]
    """Per channel, for pixels scaled to 0..1."""
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIDE:
            raise CompressError(f"size must be in [1, {MAX_SIDE}] pixels, got {self.size}")
        if not self.size <= self.resize <= 2 * MAX_SIDE:
            raise CompressError(
                f"resize must be in [size, {2 * MAX_SIDE}] pixels, got {self.resize}"
            )
        if self.channels not in (1, 3):
            raise CompressError(f"channels must be 1 or 3, got {self.channels}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise CompressError("mean and std must have one number per channel")
        if not all(0 <= mean <= 1 for mean in self.mean) or not all(
            SMALLEST_STD <= std <= 1 for std in self.std
        ):
            raise CompressError(f"mean must be in [0, 1] and std in [{SMALLEST_STD}, 1]")

    @property
    def mode(self) -> Mode:
        """Pillow's name of the color mode."""
        return "L" if self.channels == 1 else "RGB"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How a pretrained network wants images from folders; the defaults are ImageNet's usual."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    size: int = 224
    """Side of the square input in pixels, unless the user asks for another."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 224 / 256
    """Side of the center crop relative to the resized short side (timm's name)."""
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per channel, for pixels scaled to 0..1."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def preprocess(self, size: int) -> Preprocess:
        """Returns the preprocessing of color images for an input of `size` pixels; 0: its own.

        Raises:
            CompressError: a value is out of range.
        """
        size = size or self.size
        return Preprocess(
            size=size,
            resize=round(size / self.crop_pct),
            interpolation=self.interpolation,
            channels=len(self.mean),
            mean=self.mean,
            std=self.std,
        )


def inputs_of(spec: Preprocess) -> Inputs:
    """Returns what `Inputs.preprocess` makes a network's preprocessing from."""
    return Inputs(
        size=spec.size,
        crop_pct=spec.size / spec.resize,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )


MAX_ASPECT = 16
"""Largest aspect ratio to resize: an image of 1 x 60,000 would take gigabytes at 256."""


def shrink(image: Image.Image, spec: Preprocess) -> Image.Image:
    """Returns the image with its short side at most `spec.resize` pixels long.

    `preprocess_image` returns the same for the shrunk image as for the original.
    """
    large = min(image.size) > spec.resize
    return resize_short_side(image, spec.resize, spec.interpolation) if large else image


def resize_short_side(image: Image.Image, side: int, interpolation: Interpolation) -> Image.Image:
    """Returns the image with its short side `side` pixels long, preserving the aspect ratio.

    Images of an aspect ratio above `MAX_ASPECT` are cropped to their center first.
    """
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, min(width, left + longest), min(height, top + longest)))
    scale = side / min(image.size)
    if scale == 1:
        return image
    width, height = (max(side, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling[interpolation.upper()])


def preprocess_image(image: Image.Image, spec: Preprocess) -> np.ndarray:
    """Resizes and crops an image for the network.

    Args:
        image: upright, in the spec's mode (see `read_image`), of any size.
        spec: the network's preprocessing.

    Returns:
        uint8 `[channels, size, size]`.
    """
    assert image.mode == spec.mode
    return channels_first(center_crop(image, spec))


def center_crop(image: Image.Image, spec: Preprocess) -> Image.Image:
    """Resizes the short side of an image and crops the center, `size` x `size` pixels."""
    resized = resize_short_side(image, spec.resize, spec.interpolation)
    left = (resized.width - spec.size) // 2
    top = (resized.height - spec.size) // 2
    return resized.crop((left, top, left + spec.size, top + spec.size))


def channels_first(image: Image.Image) -> np.ndarray:
    """Returns an image as uint8 `[channels, height, width]`."""
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
