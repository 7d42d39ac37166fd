"""Loads a dataset by name, one of `names.DATASETS`."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from compress.cache import cached
from compress.data.augment import Augmentation
from compress.data.config import DataConfig
from compress.data.copies import copied_files, copied_images
from compress.data.datasets import Dataset, class_names_of, read_dataset, shape_of
from compress.data.digits import WHITE, read_digits
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
from compress.trust import import_trusted

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

    @staticmethod
    def from_datasets(
        *,
        train: Dataset,
        test: Dataset,
        validation: Dataset | None = None,
        class_names: Sequence[str] = (),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        config: DataConfig | None = None,
        seed: int = 0,
        name: str = "datasets",
    ) -> "Data":
        """Reads map-style datasets of (image, label), each image once, into memory.

        Random transforms would be frozen: leave them out, and choose `config.augment`.

        Args:
            train: PIL images, uint8 arrays or tensors, or float tensors, normalized with `mean` and
                `std` or scaled to 0..1. Labels are integers from 0.
            test: scores the results; used for nothing else.
            validation: used for decisions; by default `config.validation` of the training images.
            class_names: by default `train.classes`, as torchvision's datasets have, or numbers.
            mean: per channel, what the network's inputs are normalized with, for pixels scaled to
                0..1; by default ImageNet's.
            std: per channel.
            config: size (of PIL images), augmentation, and validation fraction.
            seed: random seed of the validation split.
            name: of the dataset, for reports.

        Raises:
            DataError: an image or label is unusable.
        """
        config = config or DataConfig()
        datasets = {"training": train, "validation": validation, "test": test}
        given = {split: one for split, one in datasets.items() if one is not None}
        spec = _dataset_preprocess(train, tuple(mean), tuple(std), config)
        arrays = {split: read_dataset(one, spec, name=split) for split, one in given.items()}
        names = tuple(class_names) or class_names_of(train, arrays["training"][1])
        for split, (_, labels) in arrays.items():
            if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
                raise DataError(
                    f"{split} labels are {int(labels.min())} to {int(labels.max())}, but there are "
                    f"{count_of(len(names), 'class')}: labels must be integers from 0"
                )
        return _in_memory(
            name=name,
            class_names=names,
            train=arrays["training"],
            validation=arrays.get("validation"),
            test=arrays["test"],
            flip=True,
            preprocess=spec,
            content=_content_digest(arrays),
            config=config,
            seed=seed,
        )


def _dataset_preprocess(
    train: Dataset, mean: tuple[float, ...], std: tuple[float, ...], config: DataConfig
) -> Preprocess:
    """Returns the preprocessing of datasets: the size and channels of the first image.

    Raises:
        DataError: the first image is unusable, or gray images have no mean and deviation.
    """
    shape = shape_of(train)
    channels, size = shape or (len(mean) or 3, config.size or IMAGENET_INPUTS.size)
    if config.size not in (0, size):
        raise DataError(
            f"data.size is {config.size}, but the dataset's tensors have {size} px; resize them in "
            "the dataset, or let it return PIL images"
        )
    if bool(mean) != bool(std):
        raise DataError("pass both mean and std, or neither")
    if not mean and channels != len(IMAGENET_INPUTS.mean):
        raise DataError(f"pass mean and std, {channels} number each: they have no default for gray")
    return Preprocess(
        size=size,
        resize=size if shape else round(size / IMAGENET_INPUTS.crop_pct),
        channels=channels,
        mean=mean or IMAGENET_INPUTS.mean,
        std=std or IMAGENET_INPUTS.std,
    )


def _content_digest(arrays: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    digest = hashlib.sha256()
    for split, (images, labels) in sorted(arrays.items()):
        digest.update(split.encode())
        digest.update(images.numpy().data)
        digest.update(labels.numpy().data)
    return digest.hexdigest()


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
        if ":" in name:
            return _datasets_of_code(name, config, seed)
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


def _datasets_of_code(name: str, config: DataConfig, seed: int) -> Data:
    """Calls `package.module:function`, which returns the arguments of `Data.from_datasets`."""
    arguments = import_trusted(name, "data set")()
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"{name} must return a dict with the arguments of compress.Data.from_datasets, such as "
            f"train and test, got {type(arguments).__name__}"
        )
    try:
        return Data.from_datasets(**arguments, config=config, seed=seed, name=name)
    except TypeError as error:
        raise DataError(f"{name}: {error}") from None


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
        train=(train_images[:, None], train_labels.long()),
        test=(test_images[:, None], test_labels.long()),
        flip=True,
        preprocess=_gray(config.size or train_images.shape[-1], mean=0.2860, std=0.3530),
        content=",".join(SHA256.values()),
        config=config,
        seed=seed,
    )


def _digits(config: DataConfig, seed: int) -> Data:
    raw, targets = read_digits()
    gray = torch.from_numpy(raw * (255 / WHITE)).round().to(torch.uint8)
    labels = torch.from_numpy(targets).long()
    zoom = DIGITS_SIZE // gray.shape[-1]
    images = gray.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)[:, None]
    rest, test = stratified_split(labels, DIGITS_TEST_SHARE, seed=0)  # the test split never changes
    return _in_memory(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=(images[rest], labels[rest]),
        test=(images[test], labels[test]),
        flip=False,
        preprocess=_gray(config.size or images.shape[-1], mean=0.3052, std=0.3760),
        content=hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        config=config,
        seed=seed,
    )


def _gray(size: int, *, mean: float, std: float) -> Preprocess:
    return Preprocess(size=size, resize=size, channels=1, mean=(mean,), std=(std,))


def _in_memory(
    *,
    name: str,
    class_names: tuple[str, ...],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None = None,
    flip: bool,
    preprocess: Preprocess,
    content: str,
    config: DataConfig,
    seed: int,
) -> Data:
    """Builds the splits of a set in memory.

    Images are uint8 `[n, channels, side, side]`; `flip` is what `config.flip = "auto"` means for
    them.
    """

    def split(images: Tensor, labels: Tensor) -> TensorSplit:
        return TensorSplit(
            images=_resized(images, preprocess.size),
            labels=labels,
            augmentation=_augmentation(config, flip=flip),
            shift=0 if config.augment == "none" else config.shift,
        )

    if validation is None:
        images, labels = train
        kept, held_out = stratified_split(labels, config.validation, seed)
        train, validation = (images[kept], labels[kept]), (images[held_out], labels[held_out])
    return Data(
        name=name,
        config=config,
        class_names=class_names,
        preprocess=preprocess,
        train=split(*train),
        validation=split(*validation),
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
    """Resizes images, uint8 `[n, channels, side, side]`."""
    if size == images.shape[-1]:
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
