"""Preprocessing, shared by training, calibration, scoring, and the ONNX file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from compress.data.config import MAX_SIDE
from compress.data.image import Mode
from compress.errors import CompressError

SMALLEST_STD = 1e-3
"""Smallest accepted deviation, of pixels scaled to 0..1; networks that take 0..255 have 1/255."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the network's input.

    An image is decoded to 1 or 3 channels (see `image.py`), its short side resized to `resize`
    (bilinear, antialiased), and the center `size` x `size` cropped, giving uint8
    `[channels, size, size]`. Normalization, `(pixel / 255 - mean) / std`, is the first operation of
    every network and part of the exported graph.
    """

    size: int
    """Side of the square input in pixels."""
    resize: int
    """Length of the short side before the center crop, in pixels."""
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


MAX_ASPECT = 16
"""Largest aspect ratio to resize: an image of 1 x 60,000 would take gigabytes at 256."""


def resize_short_side(image: Image.Image, side: int) -> Image.Image:
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
    return image.resize((width, height), Image.Resampling.BILINEAR)


def preprocess_image(image: Image.Image, spec: Preprocess) -> np.ndarray:
    """Resizes and crops an image for the network.

    Args:
        image: upright, in the spec's mode (see `read_image`), of any size.
        spec: the network's preprocessing.

    Returns:
        uint8 `[channels, size, size]`.
    """
    assert image.mode == spec.mode
    resized = resize_short_side(image, spec.resize)
    left = (resized.width - spec.size) // 2
    top = (resized.height - spec.size) // 2
    crop = resized.crop((left, top, left + spec.size, top + spec.size))
    return channels_first(crop)


def channels_first(image: Image.Image) -> np.ndarray:
    """Returns an image as uint8 `[channels, height, width]`."""
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
