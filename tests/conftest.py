"""Real data and a real run, made once and shared."""

import functools
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image
from torch.onnx._internal.exporter._registration import ONNXRegistry

from compress.architectures.build import Classifier, build
from compress.architectures.spec import ModelSpec
from compress.cache import MEASURED
from compress.checkpoint import REPORT_JSON, Checkpoint, Product, write_checkpoint
from compress.cli.main import main
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.digits import WHITE, read_digits
from compress.data.load import load_data
from compress.data.splits import Split
from compress.files import cache_folder
from compress.log import warn_once
from compress.measure import latency
from compress.measure.latency import COLD_RUNS, MIN_PROCESSES
from compress.prune.batchnorm import reestimate_batchnorm
from compress.teacher.result import TeacherResult

STUDENT = {"width": 0.25, "depths": [1, 1, 1]}
RUN_SETTINGS = (
    *("teacher.train.epochs=3", "teacher.train.min_steps=60", "teacher.train.batch_size=64"),
    *("distill.train.min_steps=60", "prune.train.min_steps=30", "prune.iterations=1"),
    # Of what is timed, only pruned candidates decide: the same precision on every machine.
    *("teacher.train.precision=fp32", "distill.train.precision=fp32"),
    *("prune.train.precision=fp32", "prune.latency_ratio=1", "prune.macs_ratio=0.6"),
    *("quantize.method=ptq", "measure.rounds=5"),
)
CARD = Path(__file__).with_name("small.toml")
RUN = (
    *("run", str(CARD), "--data", "digits"),
    *(part for setting in RUN_SETTINGS for part in ("--set", setting)),
)
"""The command of `finished_run`, but for its `--out`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Makes the finished run first and uses it last, so that no process waits for another's."""
    users = [item for item in items if "finished_run" in getattr(item, "fixturenames", ())]
    others = [item for item in items if item not in users]
    items[:] = [*users[:1], *others, *users[1:]]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of this test session have in common."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> None:
    """A cache for this session: its processes share measurements, and the dataset with others."""
    own = tmp_path_factory.mktemp("cache")
    data_set, measured = cache_folder() / "fashion-mnist", shared / MEASURED
    if data_set.is_dir():
        (own / data_set.name).symlink_to(data_set)
    measured.mkdir(exist_ok=True)
    (own / MEASURED).symlink_to(measured)
    os.environ["COMPRESS_CACHE"] = str(own)


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operators() -> Iterator[None]:
    """The exporter makes the same table anew for each file, a third of a small network's export."""
    table = functools.cache(ONNXRegistry.from_torchlib)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(table))
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_latencies() -> Iterator[None]:
    """Of small networks in two processes, caches warm; the finished run has the usual ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "COLD_RUNS", 0)
        patch.setattr(latency, "MIN_PROCESSES", 2)
        yield


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
def finished_run(shared: Path) -> Path:
    """All five stages of `small.toml` on the digits, made once; to be read only."""
    folder = shared / "runs" / "small-digits"
    with FileLock(shared / "runs.lock"), pytest.MonkeyPatch.context() as patch:
        # Runs that are compared with it must make the same choices, also on a busy machine.
        patch.setattr("compress.cache.STEADY", math.inf)
        patch.setattr(latency, "COLD_RUNS", COLD_RUNS)
        patch.setattr(latency, "MIN_PROCESSES", MIN_PROCESSES)
        if not (folder / REPORT_JSON).is_file():
            result = CliRunner().invoke(main, [*RUN, "--out", str(folder)])
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
    images, labels = read_digits()
    for label in range(10):
        chosen = (labels == label).nonzero()[0][:16]
        for place, number in enumerate(chosen):
            folder = root / ("train" if place < 12 else "test") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            gray = (images[number] * (255 / WHITE)).round().astype("uint8")
            Image.fromarray(gray).resize((32, 32)).save(folder / f"{number}.png")
    return root
