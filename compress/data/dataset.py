"""A dataset in three splits, and how one is made of arrays or of map-style datasets."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from compress.cache import cached
from compress.data.augment import Augmentation
from compress.data.config import DataConfig
from compress.data.copies import copied_files, copied_images
from compress.data.map_style import (
    Dataset,
    Images,
    WithoutLabels,
    class_names_of,
    is_normalized,
    read_dataset,
    shape_of,
)
from compress.data.preprocess import Inputs, Preprocess
from compress.data.splits import (
    FolderSplit,
    Split,
    TensorSplit,
    joined,
    labeled_share,
    stratified_split,
    without_labels,
)
from compress.errors import DataError
from compress.log import count_of, say, warn_once

CHANGE_NO_IMAGE = ("threads", "cache", "cache_gb")
"""Settings that are not part of a dataset's fingerprint."""
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
    unlabeled: Split | None = None
    """Training images without labels, for training with teachers."""
    validation: Split
    test: Split
    fingerprint: str
    """Changes with any image, label, split, or augmentation setting."""
    split_fingerprint: str
    """Changes with the images and the splits, but not with size or augmentation."""

    def with_unlabeled(self) -> "Data":
        """Returns the data with its unlabeled images at the end of the training split."""
        if self.unlabeled is None:
            return self
        return dataclasses.replace(
            self,
            train=joined(self.train, self.unlabeled),
            unlabeled=None,
            fingerprint=f"{self.fingerprint} with unlabeled images",
        )

    @staticmethod
    def from_datasets(
        *,
        train: Dataset,
        test: Dataset,
        validation: Dataset | None = None,
        unlabeled: Images | None = None,
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
            unlabeled: more training images, alone or with labels, which are ignored; only the
                teacher's logits teach them.
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
        normalized = is_normalized(train)
        arrays = {
            split: read_dataset(one, spec, name=split, normalized=normalized)
            for split, one in given.items()
        }
        names = tuple(class_names) or class_names_of(train, arrays["training"][1])
        _check_labels({split: labels for split, (_, labels) in arrays.items()}, len(names))
        if unlabeled is not None:
            arrays["unlabeled"] = read_dataset(
                WithoutLabels(unlabeled), spec, name="unlabeled", normalized=normalized
            )
        return in_memory(
            name=name,
            class_names=names,
            train=arrays["training"],
            validation=arrays.get("validation"),
            test=arrays["test"],
            unlabeled=arrays["unlabeled"][0] if "unlabeled" in arrays else None,
            flip=True,
            preprocess=spec,
            content=_content_digest(arrays),
            config=config,
            seed=seed,
        )


def _check_labels(labels: Mapping[str, Tensor], n_classes: int) -> None:
    """Raises DataError unless the labels of all splits number the classes from 0."""
    for split, one in labels.items():
        if not 0 <= int(one.min()) <= int(one.max()) < n_classes:
            raise DataError(
                f"{split} labels are {int(one.min())} to {int(one.max())}, but there are "
                f"{count_of(n_classes, 'class')}: labels must be integers from 0"
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


def in_memory(
    *,
    name: str,
    class_names: tuple[str, ...],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None = None,
    unlabeled: Tensor | None = None,
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
            augmentation=augmentation_of(config, flip=flip),
            shift=0 if config.augment == "none" else config.shift,
        )

    if validation is None:
        images, labels = train
        kept, held_out = stratified_split(labels, config.validation, seed)
        train, validation = (images[kept], labels[kept]), (images[held_out], labels[held_out])
    images, labels = train
    kept, others = labeled_share(labels, config.labels, seed)
    if len(others):
        train = (images[kept], labels[kept])
        unused = images[others]
        unlabeled = unused if unlabeled is None else torch.cat([unused, unlabeled])
    data = Data(
        name=name,
        config=config,
        class_names=class_names,
        preprocess=preprocess,
        train=split(*train),
        unlabeled=None if unlabeled is None else split(unlabeled, without_labels(len(unlabeled))),
        validation=split(*validation),
        test=split(*test),
        fingerprint=fingerprint(content, config, seed, preprocess),
        split_fingerprint=split_fingerprint(content, split_rule_of(config, seed)),
    )
    return checked(data)


def augmentation_of(config: DataConfig, *, flip: bool) -> Augmentation:
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


def checked(data: Data) -> Data:
    """Describes a dataset, and warns of images that occur in two splits; returns it.

    Raises:
        DataError: there are no validation images.
    """
    if not len(data.validation):
        raise DataError(
            f"{data.name}: no class has two training images, so none can be held out for "
            "validation; add images, or validation images of their own"
        )
    for warning in _copies(data):
        warn_once(f"warning: {warning}")
    side = data.preprocess.size
    unlabeled = f" (and {len(data.unlabeled)} unlabeled)" if data.unlabeled is not None else ""
    say(
        f"data: {data.name}, {side} x {side} px, {len(data.class_names)} classes, "
        f"{len(data.train)} training{unlabeled}, {len(data.validation)} validation, and "
        f"{count_of(len(data.test), 'test image')}"
    )
    return data


def _copies(data: Data) -> Iterator[str]:
    """Yields a warning for each pair of splits that share images."""
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    if data.unlabeled is not None:
        splits = {"unlabeled": data.unlabeled, **splits}
    images = {name: one.images for name, one in splits.items() if isinstance(one, TensorSplit)}
    files = {name: one.names for name, one in splits.items() if isinstance(one, FolderSplit)}
    if isinstance(data.train, FolderSplit):
        root = data.train.root
        pairs = cached(
            list[tuple[str, str, int]],
            "copies",
            f"{data.split_fingerprint} {data.config.labels}",
            lambda: [(*pair, count) for pair, count in copied_files(root, files).items()],
        )
    else:
        pairs = [(*pair, count) for pair, count in copied_images(images).items()]
    for first, second, count in pairs:
        if count and (first, second) != ("unlabeled", "training"):
            yield (
                f"{count} of {count_of(len(splits[second]), f'{second} image')} also in the "
                f"{first} split, byte for byte: the {second} top-1 is inflated; remove the copies"
            )


def fingerprint(content: str, config: DataConfig, seed: int, preprocess: Preprocess) -> str:
    """Returns `Data.fingerprint`; `content` identifies images and labels."""
    facts = {**dataclasses.asdict(config), "seed": seed, "content": content}
    facts |= {"resize": preprocess.resize, "interpolation": preprocess.interpolation}
    for setting in CHANGE_NO_IMAGE:
        del facts[setting]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def split_rule_of(config: DataConfig, seed: int) -> str:
    """Describes how validation images are split off."""
    return f"validation = {config.validation}, seed {seed}"


def split_fingerprint(content: str, rule: str) -> str:
    """Returns `Data.split_fingerprint`; `content` identifies images and labels."""
    return hashlib.sha256(f"{content} {rule}".encode()).hexdigest()[:32]
