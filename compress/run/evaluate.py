"""Uses an ONNX file that compress wrote: scores it, classifies images."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.checkpoint import is_checkpoint, load_checkpoint
from compress.data.config import DataConfig
from compress.data.image import decode_image
from compress.data.load import load_data
from compress.data.preprocess import inputs_of, preprocess_image
from compress.errors import CompressError, DataError
from compress.log import warn
from compress.measure.accuracy import Accuracy, accuracy, predict_split
from compress.measure.runtime import open_session, run_session
from compress.onnx_file import read_facts
from compress.run.lookup import find_onnx
from compress.settings import parse


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The score of an ONNX file."""

    file: str
    data: str
    """The dataset."""
    split: str
    """`test` or `validation`."""
    accuracy: Accuracy


def evaluate_file(model: Path, data: str | None, split: str) -> Evaluation:
    """Scores an ONNX file that compress wrote.

    Args:
        model: the file, a checkpoint, or a run.
        data: dataset; None: the checkpoint's.
        split: `test` or `validation`.

    Raises:
        CompressError: no dataset is known, or its classes differ from the file's.
    """
    path = find_onnx(model)
    checkpoint = load_checkpoint(path.parent) if is_checkpoint(path.parent) else None
    facts = read_facts(path)
    if checkpoint is None and split == "validation":
        raise CompressError(
            f"{path} is not in a checkpoint, so its training images are unknown; specify "
            "the checkpoint's folder or score the test split"
        )
    name, config, seed = data, DataConfig(), 0
    if checkpoint is not None:  # its own split: others may contain its training images
        step = checkpoint.description.step
        name, seed = data or step.data, step.seed
        config = parse(config, step.data_config, section="data")
    if name is None:
        raise CompressError(f"{path} is not in a checkpoint; specify the dataset with --data")
    sized = dataclasses.replace(config, size=facts.preprocess.size)
    loaded = load_data(name, sized, seed=seed, inputs=inputs_of(facts.preprocess))
    if loaded.class_names != facts.class_names:
        raise CompressError(
            f"{path} has the classes {', '.join(facts.class_names)}; {loaded.name} has "
            f"{', '.join(loaded.class_names)}"
        )
    chosen = loaded.test if split == "test" else loaded.validation
    score = accuracy(predict_split(path, chosen), chosen.labels.numpy())
    return Evaluation(file=str(path), data=loaded.name, split=split, accuracy=score)


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """A class and how probable it is."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The classification of one image."""

    image: str
    classes: tuple[ClassProbability, ...] = ()
    """The most probable first; empty if the image cannot be read."""
    error: str | None = None
    """Why the image cannot be read."""


def predict_images(model: Path, images: Sequence[Path], top: int) -> Iterator[Prediction]:
    """Yields each image's most probable classes.

    Raises:
        CompressError: compress did not write the file.
    """
    file = find_onnx(model)
    facts = read_facts(file)
    session = open_session(file, threads=1)
    for path in images:
        try:
            decoded = decode_image(path, facts.preprocess.mode, short_side=facts.preprocess.resize)
        except DataError as error:
            yield Prediction(image=str(path), error=str(error))
            continue
        if decoded.has_more_frames:
            warn(f"{path} has several frames or pages; only the first is used")
        array = preprocess_image(decoded.image, facts.preprocess)
        logits = run_session(session, array[None])[0].astype(np.float64)
        if len(logits) != len(facts.class_names) or not np.isfinite(logits).all():
            raise CompressError(
                f"{model} does not return finite logits for its {len(facts.class_names)} classes; "
                "export it again"
            )
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-shares)[:top]
        classes = tuple(
            ClassProbability(name=facts.class_names[place], probability=float(shares[place]))
            for place in best
        )
        yield Prediction(image=str(path), classes=classes)
