"""Thumbnails of test images, as data URIs."""

import base64
import io

import numpy as np
from PIL import Image

SIDE = 96
"""Pixels of a thumbnail's side."""
GLOW = np.array([255.0, 90.0, 0.0])
STRENGTH = 0.65
"""Of the glow where a map is largest."""


def thumbnail(image: np.ndarray, heat: np.ndarray | None = None) -> str:
    """Returns an image, uint8 `[C, H, W]`, as a data URI; `heat` `[h, w]`, 0..1, glows on it."""
    pixels = image.repeat(3, 0) if len(image) == 1 else image
    shown = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    shown = shown.resize((SIDE, SIDE), Image.Resampling.BOX)
    if heat is not None:
        large = Image.fromarray(heat.astype(np.float32)).resize(shown.size)
        share = STRENGTH * np.clip(np.asarray(large), 0, 1)[..., None]
        blended = (1 - share) * np.asarray(shown) + share * GLOW
        shown = Image.fromarray(blended.astype(np.uint8))
    content = io.BytesIO()
    shown.save(content, "WEBP", quality=75)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
