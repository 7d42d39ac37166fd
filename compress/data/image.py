"""An image file becomes an upright uint8 image: in one place, for all who look at images.

Pillow decodes; what its mode does not say is settled here. EXIF orientation is applied, color
profiles are not. Of several frames or pages the first is taken, and this is said.

| the file holds (Pillow's mode)                 | becomes                                        |
| ---------------------------------------------- | ---------------------------------------------- |
| 1 or 8 bits of gray, palette (1, L, P)         | itself; a palette's colors                     |
| 8-bit colors (RGB, RGBX, CMYK, YCbCr, LAB, HSV)| RGB, without the color profile                 |
| transparency (LA, La, PA, RGBA, RGBa, or a     | laid over `BACKGROUND`, white                  |
| transparent color or palette entry)            |                                                |
| 16 bits of gray (I;16, L, B or N; PGM's I)     | value / 257, rounded: 0..65535 is all of 0..255|
| 12 bits of gray (TIFF)                         | value * 255 / 4095, rounded                    |
| 16-bit colors                                  | the high byte, which is what Pillow decodes    |
| signed or 32-bit integers, floats (I, F)       | refused: their range is not known              |

Gray becomes three equal channels where RGB is wanted; colors become luma (ITU-R 601) where gray is.
"""

from __future__ import annotations

import errno
import io
import stat
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from compress.errors import DataError
from compress.log import say

Mode = Literal["L", "RGB"]
"""Pillow's names of one gray channel and of three colors."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Plain raster formats with a signature: no programs (EPS), no containers, no guesses (TGA)."""
MAX_PIXELS = 2**27
"""Of one image: 134 million, as 11,585 x 11,585. Decoded it takes 0.5 GB, and 2.5 GB for a moment
where a decoder keeps several copies (animated WebP with transparency)."""
MAX_BYTES = 8 * MAX_PIXELS
"""Of one file: so many pixels in four channels of 16 bits."""
BACKGROUND = "white"
"""What shows through transparent images, as on most screens and on paper."""
SAMPLED = 32
"""Images that `range_warning` looks at."""
NARROW = 256 // 8
"""Values: images that use fewer are as good as blank to a network that expects 0..255."""
OUTLIERS = 0.005
"""Share of the pixels on either side that do not count: dead pixels, a line of text."""

# Pillow warns above its limit and raises above twice that: make it one limit, for every thread.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Odd metadata in an image that can be decoded: thousands of lines that name no file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

OUR_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""The system's errors that say nothing about the file: they must not leave it out."""
_frames_told = threading.Lock()
"""Taken, and kept, by the first who tells that frames are left out."""


def read_image(path: Path, mode: Mode) -> Image.Image:
    """Decodes an image file.

    Args:
        path: the file.
        mode: of the result.

    Returns:
        An upright image, uint8 per channel; it holds no file open.

    Raises:
        DataError: the file cannot be read as an image, and why, in one line that begins with its
            path.
        OSError: this process is short of file handles or memory.
    """
    content = _content(path)
    image = _decode(content, path)
    if fault := _fault(image):
        raise DataError(f"{path} {fault}")
    image = _flatten(_to_8_bits(image))
    return image if image.mode == mode else image.convert(mode)


def range_warning(root: Path, names: Sequence[str]) -> str | None:
    """Looks at some dozens of a set's images, all over it, together.

    Args:
        root: of the set.
        names: paths below it.

    Returns:
        A warning if they use less than an eighth of 0..255, as 12-bit data in 16-bit files do.
    """
    count = min(len(names), SAMPLED)
    sample = [root / names[place * len(names) // count] for place in range(count)]
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        shares = np.cumsum(sum(pool.map(_histogram, sample), np.zeros(256)))
    low, high = np.searchsorted(shares, (OUTLIERS * shares[-1], (1 - OUTLIERS) * shares[-1]))
    if not shares[-1] or high - low >= NARROW:
        return None
    return (
        f"the {count} training images looked at use only {low} to {high} of the values 0..255; if "
        "that is not what they show, stretch their values to all of 8 or 16 bits"
    )


def _histogram(path: Path) -> np.ndarray:
    """Returns the share of pixels at each value, float64 `[256]`; zeros if it cannot be read."""
    try:
        counts = np.array(read_image(path, "RGB").histogram(), np.float64).reshape(3, 256)
    except DataError:  # the check of the folders tells it
        return np.zeros(256)
    shares: np.ndarray = counts.sum(0) / counts.sum()
    return shares


def _content(path: Path) -> bytes:
    """Returns a file's bytes: in memory no decoder can ask for more of them than there are."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a device or a pipe would be read for ever
            raise DataError(f"{path} is not a file; name an image file")
        if facts.st_size > MAX_BYTES:
            limit = f"{MAX_BYTES / 2**30:.0f} GB"
            raise DataError(f"{path} has more than {limit}, too much for one image; shrink it")
        content = path.read_bytes()
    except OSError as error:
        if error.errno in OUR_SHORTAGE:
            raise
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise DataError(f"{path} is empty; remove it")
    return content


def _decode(content: bytes, path: Path) -> Image.Image:
    """Returns the first frame, upright, in Pillow's mode for it.

    Only Pillow's own code runs in the `try`, on bytes that anybody may have written: whatever it
    raises is the file's fault. On damaged files these were seen: OSError, ValueError, SyntaxError,
    RuntimeError, IndexError, TypeError, ZeroDivisionError and struct.error.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        # A second image in a JPEG (MPO) is a preview or a depth map: nothing is left out.
        several = getattr(image, "is_animated", False) and image.format != "MPO"
        ImageOps.exif_transpose(image, in_place=True)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{MAX_PIXELS / 1e6:.0f} million pixels"
        raise DataError(f"{path} has more than {limit}; shrink it") from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(
            f"{path} is damaged or no image of these formats: {known}; convert or remove it"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an image ({reason}); repair or remove it"
        ) from None
    if several:
        _tell_of_frames(path)
    return image


def _tell_of_frames(path: Path) -> None:
    """Says once per run that only first frames are used."""
    if _frames_told.acquire(blocking=False):
        say(f"{path} has several frames or pages: of it, and others like it, the first is used")


def _fault(image: Image.Image) -> str | None:
    """Returns why an image's values have no place in 0..255, if so."""
    signed = 2 in _tiff_tag(image, ExifTags.Base.SampleFormat)
    remedy = "whose range is not known; save it with 8 or 16 bits without sign"
    if image.mode == "F":
        return f"holds floating point values, {remedy}"
    if signed or (image.mode == "I" and image.format == "TIFF"):
        return f"holds {'signed' if signed else '32-bit'} integers, {remedy}"
    return None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales gray of 12 or 16 bits to 8; other pictures have 8 already."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    top = 4095 if 12 in _tiff_tag(image, ExifTags.Base.BitsPerSample) else 65535
    wide = np.asarray(image.convert("I")).clip(0, top)
    gray = (wide * 255 + top // 2) // top
    if 0 in _tiff_tag(image, ExifTags.Base.PhotometricInterpretation):
        gray = 255 - gray  # 0 is white; Pillow looks at that up to 8 bits
    if (transparent := image.info.get("transparency")) is not None:
        gray = np.where(wide == transparent, 255, gray)  # PNG's, on the white background
    return Image.fromarray(gray.astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """Lays an image with transparency over the background."""
    if image.mode == "LAB":
        return image.convert("RGB")  # Pillow knows no way from LAB to gray
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of 16-bit colors, whose high bytes were read
        image.info["transparency"] = tuple(value >> 8 for value in key)
    colors = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", image.size, BACKGROUND)
    flat.paste(colors, mask=colors)
    return flat


def _tiff_tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    """Returns a tag's values; none if the image is no TIFF or lacks it."""
    value = getattr(image, "tag_v2", {}).get(tag, ())
    return value if isinstance(value, tuple) else (value,)
