"""Decodes image files to upright uint8 images, for all parts of the program.

Pillow decodes; cases that its modes leave open are settled here. EXIF orientation is applied, color
profiles are not. Of several frames or pages, the first is used.

| file content (Pillow's mode)                   | becomes                                        |
| ---------------------------------------------- | ---------------------------------------------- |
| 1 or 8 bits of gray, palette (1, L, P)         | itself; a palette's colors                     |
| 8-bit colors (RGB, RGBX, CMYK, YCbCr, LAB, HSV)| RGB, without the color profile                 |
| transparency (LA, La, PA, RGBA, RGBa, or a     | laid over `BACKGROUND`, white                  |
| transparent color or palette entry)            |                                                |
| 16 bits of gray (I;16, L, B or N; PGM's I)     | value / 257, rounded: 0..65535 is all of 0..255|
| 12 bits of gray (TIFF)                         | value * 255 / 4095, rounded                    |
| 16-bit colors                                  | the high byte, which is what Pillow decodes    |
| signed or 32-bit integers, floats (I, F)       | refused: their range is not known              |

For RGB, gray is repeated; for gray, colors are converted to luma (ITU-R 601).
"""

import errno
import io
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from compress.errors import DataError
from compress.log import count_of

Mode = Literal["L", "RGB"]
"""Pillow's names for grayscale and color."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Raster formats with a signature: no programs (EPS), containers, or formats to guess (TGA)."""
MAX_PIXELS = 2**27
"""Largest image: 134 million pixels, as in 11,585 x 11,585. Decoded it takes 0.5 GB, and briefly
2.5 GB if a decoder keeps several copies (animated WebP with transparency)."""
MAX_BYTES = 8 * MAX_PIXELS
"""Largest file: `MAX_PIXELS` in four channels of 16 bits."""
DRAFT_MARGIN = 2
"""How much larger than needed a draft of a JPEG is, so that shrinking it still averages pixels."""
BACKGROUND = "white"
"""Background of transparent images."""
SAMPLED = 32
"""Images that `range_warning` samples."""
SAMPLE_SIDE = 128
"""Their short side in pixels, if a JPEG can be decoded at a fraction of its size."""
NARROW = 256 // 8
"""Images that use fewer values are nearly blank to a network that expects 0..255."""
OUTLIERS = 0.005
"""Fraction of the pixels to ignore at either end, such as dead pixels or a line of text."""

# Pillow warns above its limit and raises above twice the limit: make both errors, in all threads.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Odd metadata of readable images causes thousands of warnings that do not name the file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

OUR_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""System errors that are not the file's fault and must not cause it to be skipped."""


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image, and whether its file contains more frames."""

    image: Image.Image
    """Upright, uint8 per channel; keeps no file open."""
    has_more_frames: bool


def decode_image(
    path: Path, mode: Mode, *, short_side: int = MAX_PIXELS, keep_gray: bool = False
) -> DecodedImage:
    """Decodes an image file.

    Args:
        path: the file.
        mode: color mode of the result.
        short_side: what the caller will shrink the short side to, in pixels. A JPEG of more than
            four times that is decoded at a half, quarter, or eighth of its size, several times
            faster, but to no less than `DRAFT_MARGIN` times as many pixels as needed.
        keep_gray: whether gray images stay gray, a third of the bytes, whatever the mode.

    Raises:
        DataError: the file cannot be read as an image; the message is one line that begins with
            the path.
        OSError: this process is out of file handles or memory.
    """
    image, has_more_frames = _decode(_content(path), path, DRAFT_MARGIN * short_side)
    if problem := _problem(image):
        raise DataError(f"{path} {problem}")
    image = _flatten(_to_8_bits(image))
    if image.mode != mode and not (keep_gray and image.mode == "L"):
        image = image.convert(mode)
    return DecodedImage(image=image, has_more_frames=has_more_frames)


def read_image(path: Path, mode: Mode, *, short_side: int = MAX_PIXELS) -> Image.Image:
    """Returns the first frame of an image file; see `decode_image`."""
    return decode_image(path, mode, short_side=short_side).image


def range_warning(root: Path, names: Sequence[str]) -> str | None:
    """Checks the range of values of a sample of images.

    Args:
        root: root folder of the dataset.
        names: paths relative to the root.

    Returns:
        A warning if they use less than an eighth of 0..255, as 12-bit data in 16-bit files does.
    """
    count = min(len(names), SAMPLED)
    sample = [root / names[index * len(names) // count] for index in range(count)]
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while decoding
        shares = np.cumsum(sum(pool.map(_histogram, sample), np.zeros(256)))
    low, high = np.searchsorted(shares, (OUTLIERS * shares[-1], (1 - OUTLIERS) * shares[-1]))
    if not shares[-1] or high - low >= NARROW:
        return None
    return (
        f"a sample of {count_of(count, 'training image')} uses only the values {low} to {high} of "
        "0..255; unless that is intended, scale them to the full range of 8 or 16 bits"
    )


def _histogram(path: Path) -> np.ndarray:
    """Returns the fraction of pixels at each value, float64 `[256]`; zeros if unreadable."""
    try:
        image = read_image(path, "RGB", short_side=SAMPLE_SIDE)
        counts = np.array(image.histogram(), np.float64).reshape(3, 256)
    except DataError:  # reported when the folders are checked
        return np.zeros(256)
    shares: np.ndarray = counts.sum(0) / counts.sum()
    return shares


def _content(path: Path) -> bytes:
    """Returns a file's bytes; from memory, no decoder can read beyond the end."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # devices and pipes have no end
            raise DataError(f"{path} is not a file; use an image file")
        if facts.st_size > MAX_BYTES:
            limit = f"{MAX_BYTES / 2**30:.0f} GB"
            raise DataError(f"{path} is larger than {limit}, too large for an image; shrink it")
        content = path.read_bytes()
    except OSError as error:
        if error.errno in OUR_SHORTAGE:
            raise
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise DataError(f"{path} is empty; remove it")
    return content


def _decode(content: bytes, path: Path, least: int) -> tuple[Image.Image, bool]:
    """Returns the first frame, upright and in Pillow's mode, and whether there are more.

    A JPEG is decoded at a fraction of its size if no side becomes shorter than `least` pixels.

    The `try` contains only Pillow's code, on untrusted bytes: any exception is the file's fault.
    Damaged files have caused OSError, ValueError, SyntaxError, RuntimeError, IndexError, TypeError,
    ZeroDivisionError and struct.error.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        # The second image of a JPEG (MPO) is a preview or a depth map, not a frame.
        has_more = getattr(image, "is_animated", False) and image.format != "MPO"
        image.draft(None, (least, least))
        ImageOps.exif_transpose(image, in_place=True)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{MAX_PIXELS / 1e6:.0f} million pixels"
        raise DataError(f"{path} has more than {limit}; shrink it") from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(
            f"{path} is damaged or not in one of these formats: {known}; convert or remove it"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an image ({reason}); repair or remove it"
        ) from None
    return image, has_more


def _problem(image: Image.Image) -> str | None:
    """Returns why an image's values cannot be mapped to 0..255, if so."""
    signed = 2 in _tiff_tag(image, ExifTags.Base.SampleFormat)
    remedy = "whose range is unknown; save it as unsigned 8 or 16 bits"
    if image.mode == "F":
        return f"has floating-point values, {remedy}"
    if signed or (image.mode == "I" and image.format == "TIFF"):
        return f"has {'signed' if signed else '32-bit'} integers, {remedy}"
    return None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales 12- and 16-bit grayscale to 8 bits; other images have 8 already."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    top = 4095 if 12 in _tiff_tag(image, ExifTags.Base.BitsPerSample) else 65535
    wide = np.asarray(image.convert("I")).clip(0, top)
    gray = (wide * 255 + top // 2) // top
    if 0 in _tiff_tag(image, ExifTags.Base.PhotometricInterpretation):
        gray = 255 - gray  # 0 is white; Pillow handles this up to 8 bits
    if (transparent := image.info.get("transparency")) is not None:
        gray = np.where(wide == transparent, 255, gray)  # PNG, on white
    return Image.fromarray(gray.astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """Composites a transparent image onto the background."""
    if image.mode == "LAB":
        return image.convert("RGB")  # Pillow cannot convert LAB to gray
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow can convert it to
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of 16-bit colors, decoded to their high bytes
        image.info["transparency"] = tuple(value >> 8 for value in key)
    colors = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", image.size, BACKGROUND)
    flat.paste(colors, mask=colors)
    return flat


def _tiff_tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    """Returns a TIFF tag's values; empty if there are none."""
    value = getattr(image, "tag_v2", {}).get(tag, ())
    return value if isinstance(value, tuple) else (value,)
