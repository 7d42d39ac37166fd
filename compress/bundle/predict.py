"""Classifies images: `python predict.py IMAGE...`; needs numpy, pillow, and onnxruntime."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: str | Path, spec: dict[str, Any]) -> np.ndarray:
    """Returns an image as the network was tested with it, uint8 `[channels, size, size]`."""
    image: Image.Image = Image.open(io.BytesIO(Path(path).read_bytes()))
    image.draft(None, (2 * spec["resize"],) * 2)  # large JPEGs are decoded at a fraction of it
    ImageOps.exif_transpose(image, in_place=True)
    tags = {tag: np.ravel(value) for tag, value in dict(getattr(image, "tag_v2", {})).items()}
    bits, photometric, sample_format = (tags.get(tag, ()) for tag in (258, 262, 339))
    if image.mode == "F" or 2 in sample_format or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(f"{path}: the range of its values is unknown; save it in 8 or 16 bits")
    if image.mode.startswith("I"):  # 12 or 16 bits of gray
        top = 4095 if 12 in bits else 65535
        wide = np.asarray(image.convert("I")).clip(0, top)
        gray = (wide * 255 + top // 2) // top
        gray = 255 - gray if 0 in photometric else gray
        gray = np.where(wide == image.info.get("transparency", -1), 255, gray)
        image = Image.fromarray(gray.astype(np.uint8))
    if image.mode in ("LAB", "La"):
        image = image.convert("RGB" if image.mode == "LAB" else "LA")
    if image.has_transparency_data:  # laid over white
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:
            image.info["transparency"] = tuple(value >> 8 for value in key)
        colors = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(colors, mask=colors)
    image = image.convert("L" if spec["channels"] == 1 else "RGB")
    longest = 16 * min(image.size)  # longer images are cropped first
    image = _center(image, *(min(length, longest) for length in image.size))
    short = min(image.size)
    width, height = (max(spec["resize"], round(n * (spec["resize"] / short))) for n in image.size)
    interpolation = spec.get("interpolation", "bilinear").upper()
    image = image.resize((width, height), Image.Resampling[interpolation])
    array = np.asarray(_center(image, spec["size"], spec["size"]))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _center(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def main(paths: list[str]) -> None:
    """Prints the class of each image."""
    here = Path(__file__).parent
    manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(here / manifest["ship"])
    metadata = session.get_modelmeta().custom_metadata_map
    spec, classes = json.loads(metadata["preprocess"]), json.loads(metadata["class_names"])
    for path in paths:
        (logits,) = session.run(["logits"], {"images": read(path, spec)[None]})
        print(f"{path}: {classes[logits[0].argmax()]}")


if __name__ == "__main__":
    main(sys.argv[1:])
