"""Loads a dataset by name, one of `names.DATASETS`."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.transforms.v2 import functional

from compress.cache import cached
from compress.data.augment import Augmentation
from compress.data.config import DataConfig
from compress.data.copies import copied_files, copied_images
from compress.data.fashion_mnist import CLASS_NAMES, SHA256, read_fashion_mnist
from compress.data.folders import Listing, folder_warnings, read_folders
from compress.data.names import DATASETS, FOLDER_PREFIX
from compress.data.preprocess import Inputs, Preprocess
from compress.data.splits import FolderSplit, Split, TensorSplit, stratified_split
from compress.distributed import processes_here
from compress.errors import CompressError, DataError
from compress.host import allowed_cores
from compress.log import count_of, say, warn_once
from compress.settings import nearest

CHANGE_NO_IMAGE = ("threads", "cache", "cache_gb")
"""Settings that are not part of a dataset's fingerprint."""
DIGITS_SIZE = 16
"""The 8 px digits are upsampled by 2, since most networks downsample by 32."""
DIGITS_TEST_SHARE = 0.2
IMAGENET_INPUTS = Inputs()


@dataclass(frozen=True, kw_only=True)
class Data:
    """A dataset: three splits and their common properties."""

    name: str
    """As given by the user; folders with their absolute path."""
    config: DataConfig
    class_names: tuple[str, ...]
    preprocess: Preprocess
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    """Changes with any image, label, split, or augmentation setting."""
    split_fingerprint: str
    """Changes with the images and the splits, but not with size or augmentation."""


def load_data(
    name: str, config: DataConfig, *, seed: int, inputs: Inputs = IMAGENET_INPUTS
) -> Data:
    """Loads a dataset.

    Args:
        name: one of `DATASETS`.
        config: splits, size, and augmentation.
        seed: random seed of the splits.
        inputs: how the network wants images from folders; datasets in memory have their own
            size, mean, and deviation.

    Raises:
        DataError: the dataset is unavailable, or not laid out as expected.
        CompressError: there is no such dataset.
    """
    if name == "fashion-mnist":
        data = _fashion_mnist(config, seed)
    elif name == "digits":
        data = _digits(config, seed)
    elif name.startswith(FOLDER_PREFIX):
        root = Path(name.removeprefix(FOLDER_PREFIX)).expanduser().resolve()
        data = _image_folder(root, config, seed, inputs)
    else:
        folder = Path(name).expanduser().is_dir()
        hint = f"did you mean {FOLDER_PREFIX}{name}?" if folder else nearest(name, DATASETS)
        raise CompressError(f"unknown dataset {name!r}; {hint}")
    if not len(data.validation):
        raise DataError(
            f"{name}: no class has two training images, so none can be held out for validation; "
            "add images, or add a folder val/ next to train/"
        )
    for warning in _copies(data):
        warn_once(f"warning: {warning}")
    side = data.preprocess.size
    say(
        f"data: {name}, {side} x {side} px, {len(data.class_names)} classes, {len(data.train)} "
        f"training, {len(data.validation)} validation, and {count_of(len(data.test), 'test image')}"
    )
    return data


def _copies(data: Data) -> Iterator[str]:
    """Yields a warning for each pair of splits that share images."""
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    images = {name: one.images for name, one in splits.items() if isinstance(one, TensorSplit)}
    files = {name: one.names for name, one in splits.items() if isinstance(one, FolderSplit)}
    if isinstance(data.train, FolderSplit):
        root = data.train.root
        pairs = cached(
            list[tuple[str, str, int]],
            "copies",
            data.split_fingerprint,
            lambda: [(*pair, count) for pair, count in copied_files(root, files).items()],
        )
    else:
        pairs = [(*pair, count) for pair, count in copied_images(images).items()]
    for first, second, count in pairs:
        if count:
            yield (
                f"{count} of {count_of(len(splits[second]), f'{second} image')} also in the "
                f"{first} split, byte for byte: the {second} top-1 is inflated; remove the copies"
            )


def _fashion_mnist(config: DataConfig, seed: int) -> Data:
    arrays = [torch.from_numpy(array.copy()) for array in read_fashion_mnist().values()]
    train_images, train_labels, test_images, test_labels = arrays
    return _in_memory(
        name="fashion-mnist",
        class_names=CLASS_NAMES,
        train=(train_images, train_labels.long()),
        test=(test_images, test_labels.long()),
        flip=True,
        moments=((0.2860,), (0.3530,)),
        content=",".join(SHA256.values()),
        config=config,
        seed=seed,
    )


def _digits(config: DataConfig, seed: int) -> Data:

    digits = load_digits()
    gray = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)  # 0..16 to 0..255
    labels = torch.from_numpy(digits.target).long()
    zoom = DIGITS_SIZE // gray.shape[-1]
    images = gray.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    rest, test = stratified_split(labels, DIGITS_TEST_SHARE, seed=0)  # the test split never changes
    return _in_memory(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=(images[rest], labels[rest]),
        test=(images[test], labels[test]),
        flip=False,
        moments=((0.3052,), (0.3760,)),
        content=hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        config=config,
        seed=seed,
    )


def _in_memory(
    *,
    name: str,
    class_names: tuple[str, ...],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    flip: bool,
    moments: tuple[tuple[float, ...], tuple[float, ...]],
    content: str,
    config: DataConfig,
    seed: int,
) -> Data:
    """Builds the splits of a grayscale set in memory.

    Images are uint8 `[n, side, side]`; `flip` is what `config.flip = "auto"` means for them.
    """

    def split(images: Tensor, labels: Tensor) -> TensorSplit:
        resized = _resized(images[:, None], config.size)
        return TensorSplit(
            images=resized,
            labels=labels,
            augmentation=_augmentation(config, flip=flip),
            shift=0 if config.augment == "none" else config.shift,
        )

    images, labels = train
    kept, held_out = stratified_split(labels, config.validation, seed)
    side = config.size or images.shape[-1]
    mean, std = moments
    preprocess = Preprocess(size=side, resize=side, channels=1, mean=mean, std=std)
    return Data(
        name=name,
        config=config,
        class_names=class_names,
        preprocess=preprocess,
        train=split(images[kept], labels[kept]),
        validation=split(images[held_out], labels[held_out]),
        test=split(*test),
        fingerprint=_fingerprint(content, config, seed, preprocess),
        split_fingerprint=_split_fingerprint(content, _split_rule(config, seed)),
    )


def _augmentation(config: DataConfig, *, flip: bool) -> Augmentation:
    """Returns the augmentation of training images; `flip` is what `auto` means."""
    automatic = flip and config.augment != "none"
    return Augmentation(
        policy=config.augment,
        flip=config.flip == "on" or (config.flip == "auto" and automatic),
        vertical_flip=config.vertical_flip,
        rotate=config.rotate,
        erasing=config.erasing,
    )


def _resized(images: Tensor, size: int) -> Tensor:
    """Resizes images, uint8 `[n, channels, side, side]`; size 0 keeps them."""
    if size in (0, images.shape[-1]):
        return images

    return torch.cat(
        [functional.resize(part, [size, size], antialias=True) for part in images.split(1000)]
    )


def _image_folder(root: Path, config: DataConfig, seed: int, inputs: Inputs) -> Data:
    preprocess = inputs.preprocess(config.size)
    folders = read_folders(root, preprocess, config)
    for warning in folder_warnings(folders):
        warn_once(f"warning: {warning}")

    def split(listed: Listing) -> FolderSplit:
        return FolderSplit(
            root=root,
            names=listed.names,
            labels=listed.labels,
            rows=listed.rows,
            cache=folders.cache,
            preprocess=preprocess,
            augmentation=_augmentation(config, flip=True),
            min_scale=config.min_scale,
            threads=config.threads or max(1, allowed_cores() // processes_here()),
        )

    split_rule = _split_rule(config, seed)
    train, held_out = folders.splits["train"], folders.splits.get("val")
    if held_out is None or "test" not in folders.splits:  # split the missing one off from train
        kept, taken = stratified_split(train.labels, config.validation, seed)
        test = folders.splits.get("test", held_out)
        train, held_out = train.chosen(kept), train.chosen(taken)
    else:
        test = folders.splits["test"]
        split_rule = "the folder's own"
    assert held_out is not None
    assert test is not None
    return Data(
        name=f"{FOLDER_PREFIX}{root}",
        config=config,
        class_names=folders.class_names,
        preprocess=preprocess,
        train=split(train),
        validation=split(held_out),
        test=split(test),
        fingerprint=_fingerprint(folders.digest, config, seed, preprocess),
        split_fingerprint=_split_fingerprint(folders.digest, split_rule),
    )


def _fingerprint(content: str, config: DataConfig, seed: int, preprocess: Preprocess) -> str:
    facts = {**dataclasses.asdict(config), "seed": seed, "content": content}
    facts |= {"resize": preprocess.resize, "interpolation": preprocess.interpolation}
    for setting in CHANGE_NO_IMAGE:
        del facts[setting]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _split_rule(config: DataConfig, seed: int) -> str:
    return f"validation = {config.validation}, seed {seed}"


def _split_fingerprint(content: str, rule: str) -> str:
    return hashlib.sha256(f"{content} {rule}".encode()).hexdigest()[:32]


def calibration_order(split: Split, count: int, *, seed: int) -> Tensor:
    """Returns `count` random indices into a split, int64; all if it has fewer images."""
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]


def as_numpy(images: Tensor) -> np.ndarray:
    """Returns uint8 images as a contiguous NumPy array, for ONNX Runtime."""
    return images.contiguous().numpy()
