"""An image file becomes an upright uint8 picture: in one place, for all who look at images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from compress.errors import DataError

Mode = Literal["L", "RGB"]
"""Pillow's names of one gray channel and of three colors."""


def read_image(path: Path, mode: Mode) -> Image.Image:
    """Decodes an image file.

    Args:
        path: the file.
        mode: of the result.

    Returns:
        An upright picture, uint8 per channel, that holds no file open.

    Raises:
        DataError: the file cannot be read as an image, and why, in one line that begins with its
            path.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert(mode)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error})") from None
