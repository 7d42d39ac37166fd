"""Decoded images in a memory-mapped file, so that each image file is decoded once.

Each image is stored as `shrink` returns it, one after another: uint8 `[height, width, channels]`,
gray ones `[height, width]`.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock, Timeout
from PIL import Image

from compress.data import image as image_module
from compress.data import preprocess as preprocess_module
from compress.data.config import DataConfig
from compress.data.image import FORMATS, decode_image
from compress.data.preprocess import Preprocess, shrink
from compress.errors import DataError
from compress.files import cache_folder, file_digest
from compress.log import say, track

FOLDER = "images"
PIXELS, INDEX = "pixels.bin", "index.npy"
PARTIAL = ".partial"
"""Suffix of a cache that is being written."""
UNREADABLE, MULTI_FRAME = 1, 2
"""Flags in the index."""
CHECKED_AT_ONCE = 256
"""Images queued for the threads at a time; queuing a million would take gigabytes."""
SAMPLED = 64
"""Images whose headers are read to estimate the size of the cache."""
GB = 10**9
MIN_FREE = GB
"""Disk space to leave free, in bytes."""
ROW = np.dtype(
    [
        ("start", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("channels", np.int8),
        ("flags", np.int8),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ImageCache:
    """The decoded images of a dataset in folders."""

    folder: Path

    def image(self, row: int) -> Image.Image:
        """Returns an image by its position in the listing."""
        index, pixels, mode = _mapped(self.folder)
        start, height, width, channels, _ = index[row].tolist()
        part = pixels[start : start + height * width * channels]
        shape = (height, width) if channels == 1 else (height, width, channels)
        image = Image.fromarray(part.reshape(shape))
        return image if image.mode == mode else image.convert(mode)

    @property
    def flags(self) -> np.ndarray:
        """`UNREADABLE`, `MULTI_FRAME`, or 0 for each image, int8 `[n_images]`."""
        flags: np.ndarray = _mapped(self.folder)[0]["flags"]
        return flags


@functools.lru_cache(maxsize=8)
def _mapped(folder: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns index, pixels, and color mode; mapped once per process, pickled never."""
    index = np.load(folder / INDEX)
    return index, np.memmap(folder / PIXELS, np.uint8, "r"), folder.name.rpartition("-")[2]


def open_image_cache(
    root: Path, names: Sequence[str], digest: str, spec: Preprocess, config: DataConfig
) -> ImageCache | None:
    """Returns the cache of a dataset, decoding its images if there is none yet.

    Args:
        root: root folder of the dataset.
        names: image paths relative to the root.
        digest: digest of all paths, sizes, and modification times.
        spec: how images are decoded and shrunk.
        config: whether to cache, and how much.

    Returns:
        None if caching is off or the images would exceed the limit or the disk.
    """
    if not config.cache:
        return None
    folder = cache_folder() / FOLDER / f"{_key(digest, spec)}-{spec.mode}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _is_complete(folder):
                size = _estimate(root, names, spec)
                if (problem := _no_room(size, config)) is not None:
                    say(f"  {problem}; images are decoded in every epoch")
                    return None
                _remove_least_recent(config.cache_gb * GB - size)
                _write(folder, root, names, spec)
        os.utime(folder)  # most recently used
    except OSError as error:
        say(f"  {folder} cannot be written ({error}); images are decoded in every epoch")
        return None
    return ImageCache(folder=folder)


def _key(digest: str, spec: Preprocess) -> str:
    """Returns a digest of all that affects the decoded images."""
    modules = (image_module, preprocess_module)
    code = [file_digest(Path(module.__file__ or "")) for module in modules]
    facts = [digest, spec.resize, spec.interpolation, PIL.__version__, *code]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _is_complete(folder: Path) -> bool:
    try:
        index, size = np.load(folder / INDEX), (folder / PIXELS).stat().st_size
    except (OSError, ValueError):
        return False
    if index.dtype != ROW:
        return False
    area = index["height"].astype(np.int64) * index["width"]
    return bool((index["channels"] * area).sum() <= size)


def _estimate(root: Path, names: Sequence[str], spec: Preprocess) -> float:
    """Estimates the size of all images in bytes, from the headers of a sample."""
    step = max(1, len(names) // SAMPLED)
    sizes = []
    for name in names[::step]:
        # Unreadable ones, whatever Pillow raises, are found when all are decoded.
        with suppress(Exception), Image.open(root / name, formats=FORMATS) as image:
            scale = min(1.0, spec.resize / min(image.size))
            channels = 1 if image.mode == "L" else spec.channels
            sizes.append(channels * scale**2 * image.width * image.height)
    return len(names) * float(np.mean(sizes or [0.0]))


def _no_room(size: float, config: DataConfig) -> str | None:
    """Returns why a cache of `size` bytes is not written, if so."""
    need = f"the image cache needs {size / GB:.1f} GB"
    if size > config.cache_gb * GB:
        return f"{need}, more than data.cache_gb = {config.cache_gb:g}"
    if size > shutil.disk_usage(cache_folder()).free - MIN_FREE:
        return f"{need}, more than is free in {cache_folder()}"
    return None


def _remove_least_recent(limit: float) -> None:
    """Removes the caches that were not used for longest, until the others fit into `limit`.

    Unfinished ones go too, unless another process is writing them.
    """
    caches = [path for path in (cache_folder() / FOLDER).iterdir() if path.is_dir()]
    for path in [path for path in caches if path.suffix == PARTIAL]:
        caches.remove(path)
        with suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
            shutil.rmtree(path, ignore_errors=True)
    total = 0
    for path in sorted(caches, key=lambda path: path.stat().st_mtime, reverse=True):
        total += sum(file.stat().st_size for file in path.iterdir())
        if total > limit:
            shutil.rmtree(path, ignore_errors=True)  # Windows keeps files that are in use


def _write(folder: Path, root: Path, names: Sequence[str], spec: Preprocess) -> None:
    """Decodes all images into a folder, which appears when it is complete."""
    partial = folder.with_suffix(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        index, start = np.zeros(len(names), ROW), 0
        with (partial / PIXELS).open("wb") as file:
            decoded = track(decode_all(root, names, spec), "decoding images", total=len(names))
            for row, (image, flag) in enumerate(decoded):
                channels = len(image.getbands())
                index[row] = (start, image.height, image.width, channels, flag)
                start += file.write(image.tobytes())
            file.write(b"\0")  # an empty file cannot be mapped
        np.save(partial / INDEX, index)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _mapped.cache_clear()


def decode_all(
    root: Path, names: Sequence[str], spec: Preprocess
) -> Iterator[tuple[Image.Image, int]]:
    """Yields each image, shrunk, and its flag; an empty image if it is unreadable.

    Gray images stay gray.
    """

    def decode(name: str) -> tuple[Image.Image, int]:
        try:
            decoded = decode_image(root / name, spec.mode, short_side=spec.resize, keep_gray=True)
        except DataError:
            return Image.new(spec.mode, (0, 0)), UNREADABLE
        return shrink(decoded.image, spec), MULTI_FRAME * decoded.has_more_frames

    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while decoding
        for start in range(0, len(names), CHECKED_AT_ONCE):
            yield from pool.map(decode, names[start : start + CHECKED_AT_ONCE])
