"""Real data and a real run, made once and shared."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from compress.architectures.build import Classifier, build
from compress.architectures.spec import ModelSpec
from compress.checkpoint import Checkpoint, Product, write_checkpoint
from compress.cli.main import main
from compress.data.config import DataConfig
from compress.data.load import Data, load_data
from compress.data.splits import Split
from compress.log import warn_once
from compress.teacher.result import TeacherResult

STUDENT = {"width": 0.25, "depths": [1, 1, 1]}
RUN_SETTINGS = (
    "teacher.train.epochs=3",
    "teacher.train.min_steps=80",
    "teacher.train.batch_size=64",
    "distill.train.min_steps=150",
    "prune.train.min_steps=100",
    "prune.iterations=1",
    "prune.latency_ratio=1",  # MACs decide: the same network on every machine
    "prune.macs_ratio=0.6",
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Probes of one test session must not meet those of another; the data set may be shared."""
    from compress.files import cache_folder

    shared = cache_folder() / "fashion-mnist"
    own = tmp_path_factory.mktemp("cache")
    if shared.is_dir():
        (own / "fashion-mnist").symlink_to(shared)
    os.environ["COMPRESS_CACHE"] = str(own)


@pytest.fixture(autouse=True)
def _warnings_of_each_test() -> None:
    """A message of one test must not silence the next one's."""
    warn_once.cache_clear()


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data("digits", DataConfig(), seed=0)


def student_spec(data: Data, **arguments: object) -> ModelSpec:
    return ModelSpec(
        architecture="scaled_resnet",
        arguments={**STUDENT, **arguments},
        stem="small",
        class_names=data.class_names,
        preprocess=data.preprocess,
    )


def torchvision_spec(name: str, data: Data, **arguments: object) -> ModelSpec:
    return ModelSpec(
        architecture=name,
        arguments=arguments,
        stem="small",
        class_names=data.class_names,
        preprocess=data.preprocess,
    )


def settled(spec: ModelSpec, split: Split, *, seed: int = 0) -> Classifier:
    """An untrained network whose BatchNorm statistics are those of real images."""
    from compress.prune.batchnorm import reestimate_batchnorm

    torch.manual_seed(seed)
    model = build(spec)
    reestimate_batchnorm(model, split)
    return model


def saved(folder: Path, spec: ModelSpec, data: Data, *, seed: int = 0) -> Checkpoint:
    """A checkpoint of a `settled` network."""
    folder.mkdir()
    model = settled(spec, data.train, seed=seed)
    return write_checkpoint(
        folder,
        Product(model=model, spec=spec, result=TeacherResult()),
        stage="teacher",
        lineage=(),
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five stages of resnet18 on the digits, run through the command line."""
    home = tmp_path_factory.mktemp("run")
    folder = home / "runs" / "resnet18-digits"
    settings = [part for value in RUN_SETTINGS for part in ("--set", value)]
    result = CliRunner().invoke(
        main, ["run", "resnet18", "--data", "digits", "--out", str(folder), *settings]
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed or broken; its home is the working folder."""
    copy = tmp_path / "runs" / finished_run.name
    shutil.copytree(finished_run, copy)
    return copy


@pytest.fixture(scope="session")
def digit_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some digits as image files: 12 training and 4 test images a class."""
    root = tmp_path_factory.mktemp("digits") / "photos"
    digits = load_digits()
    for label in range(10):
        chosen = (digits.target == label).nonzero()[0][:16]
        for place, number in enumerate(chosen):
            folder = root / ("train" if place < 12 else "test") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            images = (digits.images[number] * (255 / 16)).round().astype("uint8")
            Image.fromarray(images).resize((32, 32)).save(folder / f"{number}.png")
    return root
