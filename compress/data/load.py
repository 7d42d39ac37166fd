"""Loads a dataset by name, one of `names.DATASETS`."""

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path

import torch

from compress.data.config import DataConfig
from compress.data.dataset import (
    IMAGENET_INPUTS,
    Data,
    augmentation_of,
    checked,
    fingerprint,
    in_memory,
    split_fingerprint,
    split_rule_of,
)
from compress.data.digits import WHITE, read_digits
from compress.data.fashion_mnist import CLASS_NAMES, SHA256, read_fashion_mnist
from compress.data.folders import Listing, folder_warnings, read_folders
from compress.data.names import DATASETS, FOLDER_PREFIX
from compress.data.preprocess import Inputs, Preprocess
from compress.data.splits import FolderSplit, joined, labeled_share, stratified_split
from compress.distributed import processes_here
from compress.errors import CompressError, DataError
from compress.host import allowed_cores
from compress.log import warn_once
from compress.settings import nearest
from compress.trust import import_trusted

DIGITS_SIZE = 16
"""The 8 px digits are upsampled by 2, since most networks downsample by 32."""
DIGITS_TEST_SHARE = 0.2


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
        return _fashion_mnist(config, seed)
    if name == "digits":
        return _digits(config, seed)
    if name.startswith(FOLDER_PREFIX):
        root = Path(name.removeprefix(FOLDER_PREFIX)).expanduser().resolve()
        return _image_folder(root, config, seed, inputs)
    if ":" in name:
        return _datasets_of_code(name, config, seed)
    folder = Path(name).expanduser().is_dir()
    hint = f"did you mean {FOLDER_PREFIX}{name}?" if folder else nearest(name, DATASETS)
    raise CompressError(f"unknown dataset {name!r}; {hint}")


def _datasets_of_code(name: str, config: DataConfig, seed: int) -> Data:
    """Calls `package.module:function`, which returns the arguments of `Data.from_datasets`."""
    arguments = import_trusted(name, "data set")()
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"{name} must return a dict with the arguments of compress.Data.from_datasets, such as "
            f"train and test, got {type(arguments).__name__}"
        )
    settings = {"config": config, "seed": seed, "name": name}
    try:
        call = inspect.signature(Data.from_datasets).bind(**arguments, **settings)
    except TypeError as error:
        raise DataError(f"{name}: {error}; see the arguments of Data.from_datasets") from None
    return Data.from_datasets(*call.args, **call.kwargs)


def _fashion_mnist(config: DataConfig, seed: int) -> Data:
    arrays = [torch.from_numpy(array.copy()) for array in read_fashion_mnist().values()]
    train_images, train_labels, test_images, test_labels = arrays
    return in_memory(
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
    return in_memory(
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
            augmentation=augmentation_of(config, flip=True),
            min_scale=config.min_scale,
            threads=config.threads or max(1, allowed_cores() // processes_here()),
        )

    split_rule = split_rule_of(config, seed)
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
    kept, others = labeled_share(train.labels, config.labels, seed)
    unused = split(train.chosen(others).without_labels())
    unlabeled = joined(unused, split(folders.unlabeled))
    data = Data(
        name=f"{FOLDER_PREFIX}{root}",
        config=config,
        class_names=folders.class_names,
        preprocess=preprocess,
        train=split(train.chosen(kept)),
        unlabeled=unlabeled if len(unlabeled) else None,
        validation=split(held_out),
        test=split(test),
        fingerprint=fingerprint(folders.digest, config, seed, preprocess),
        split_fingerprint=split_fingerprint(folders.digest, split_rule),
    )
    return checked(data)
