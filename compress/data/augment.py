"""Augmentation of single images, each with its own random generator.

torchvision's transforms use torch's global generator, so images decoded in threads would affect
each other and dropout.
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageOps

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest aspect ratio (width to height) of a crop."""
TRIES = 10


def random_resized_crop(
    image: Image.Image, size: int, min_scale: float, generator: torch.Generator
) -> Image.Image:
    """Crops a random region and resizes it, like torchvision's `RandomResizedCrop`.

    Draws the same numbers in the same order (Szegedy et al., arXiv 1409.4842, section 6).

    Args:
        image: an image of any size and mode.
        size: side of the result in pixels.
        min_scale: minimum fraction of the area to keep.
        generator: source of randomness.
    """
    left, top, width, height = _draw_box(*image.size, min_scale, generator)
    part = image.crop((left, top, left + width, top + height))
    return part.resize((size, size), Image.Resampling.BILINEAR)


def _draw_box(
    width: int, height: int, min_scale: float, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Returns left, top, width, and height of a random region, in pixels."""
    low, high = torch.tensor(RATIO).log().tolist()
    for _ in range(TRIES):
        area = width * height * torch.empty(1).uniform_(min_scale, 1.0, generator=generator).item()
        ratio = torch.empty(1).uniform_(low, high, generator=generator).exp().item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return left, top, w, h
    w = min(width, round(height * RATIO[1]))  # an elongated image: its center
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def random_flip(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Mirrors the image with probability 0.5."""
    return ImageOps.mirror(image) if float(torch.rand(1, generator=generator)) < 0.5 else image
