"""Augmentation of single images, each with its own random generator.

torchvision's transforms use torch's global generator, so images decoded in threads would affect
each other and dropout.
"""

import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from compress.data.config import Policy

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest aspect ratio (width to height) of a crop."""
TRIES = 10
ERASED = (0.02, 1 / 3)
"""Smallest and largest fraction of the area to erase."""
ERASED_RATIO = (0.3, 1 / 0.3)
POLICIES = {"trivial": v2.TrivialAugmentWide(), "rand": v2.RandAugment()}
LEVELS = 31
"""Magnitudes of an operation, in both papers."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is random in a view of an image, besides its position; by default nothing."""

    policy: Policy = "none"
    flip: bool = False
    vertical_flip: bool = False
    rotate: bool = False
    erasing: float = 0.0
    """Probability of erasing a random region."""

    @property
    def does_something(self) -> bool:
        """Whether a view can differ from the image."""
        distorted = self.policy in POLICIES
        return self.flip or self.vertical_flip or self.rotate or distorted or self.erasing > 0


def augment(image: Image.Image, how: Augmentation, generator: torch.Generator) -> Image.Image:
    """Flips, rotates, and distorts an image.

    Args:
        image: grayscale or RGB, square if it is rotated.
        how: what to draw; `erase` does the erasing, on tensors.
        generator: source of randomness.
    """
    if how.flip:
        image = random_flip(image, generator)
    if how.vertical_flip and _chance(0.5, generator):
        image = ImageOps.flip(image)
    if how.rotate and (turns := int(torch.randint(4, (), generator=generator))):
        image = image.transpose(Image.Transpose(Image.Transpose.ROTATE_90 + turns - 1))
    return distort(image, how.policy, generator)


def distort(image: Image.Image, policy: Policy, generator: torch.Generator) -> Image.Image:
    """Applies random operations such as shear, solarize, or contrast.

    The operations are torchvision's; its transforms would draw them from the global generator.

    Args:
        image: grayscale or RGB.
        policy: `trivial`: one operation of random magnitude (TrivialAugment, arXiv 2103.10158);
            `rand`: two operations of magnitude 9 of 30 (RandAugment, arXiv 1909.13719); others:
            none.
        generator: source of randomness.
    """
    transform = POLICIES.get(policy)
    if transform is None:
        return image
    space = list(transform._AUGMENTATION_SPACE.items())
    for _ in range(getattr(transform, "num_ops", 1)):
        name, (magnitudes, signed) = space[int(torch.randint(len(space), (), generator=generator))]
        level = int(torch.randint(LEVELS, (), generator=generator))
        levels = magnitudes(LEVELS, image.height, image.width)
        magnitude = 0.0 if levels is None else float(levels[getattr(transform, "magnitude", level)])
        if signed and _chance(0.5, generator):
            magnitude = -magnitude
        image = transform._apply_image_or_video_transform(
            image, name, magnitude, interpolation=transform.interpolation, fill=transform._fill
        )
    return image


def erase(image: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Fills a random region with random pixels (random erasing, arXiv 1708.04896, algorithm 1).

    Args:
        image: uint8 `[channels, height, width]`.
        probability: how often.
        generator: source of randomness.

    Returns:
        uint8 of the same shape.
    """
    if not _chance(probability, generator):
        return image
    height, width = image.shape[1:]
    box = _draw_box(width, height, ERASED, ERASED_RATIO, generator)
    left, top, across, down = box
    noise = torch.randint(256, (len(image), down, across), generator=generator, dtype=torch.uint8)
    image = image.clone()
    image[:, top : top + down, left : left + across] = noise
    return image


def _chance(probability: float, generator: torch.Generator) -> bool:
    return probability > 0 and float(torch.rand(1, generator=generator)) < probability


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
    left, top, width, height = _draw_box(*image.size, (min_scale, 1.0), RATIO, generator)
    part = image.crop((left, top, left + width, top + height))
    return part.resize((size, size), Image.Resampling.BILINEAR)


def _draw_box(
    width: int,
    height: int,
    scales: tuple[float, float],
    ratios: tuple[float, float],
    generator: torch.Generator,
) -> tuple[int, int, int, int]:
    """Returns left, top, width, and height of a random region, in pixels.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        scales: smallest and largest fraction of the image's area.
        ratios: smallest and largest aspect ratio (width to height).
        generator: source of randomness.
    """
    low, high = torch.tensor(ratios).log().tolist()
    for _ in range(TRIES):
        area = width * height * torch.empty(1).uniform_(*scales, generator=generator).item()
        ratio = torch.empty(1).uniform_(low, high, generator=generator).exp().item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return left, top, w, h
    w = min(width, round(height * ratios[1]))  # an elongated image: its center
    h = min(height, round(width / ratios[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def random_flip(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Mirrors the image with probability 0.5."""
    return ImageOps.mirror(image) if _chance(0.5, generator) else image
