"""The bundle's predict.py sees each image as our evaluation does, and needs little."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from compress.bundle.predict import read
from compress.bundle.write import PREDICT_SOURCE, write_bundle
from compress.cli.main import main
from compress.data.image import read_image
from compress.data.preprocess import Preprocess, preprocess_image
from compress.errors import DataError
from tests.data.test_image import modes, samples, tiff

SPECS = [
    Preprocess(size=8, resize=10, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
    Preprocess(size=12, resize=12, channels=1, mean=(0.5,), std=(0.5,), interpolation="bicubic"),
    Preprocess(size=21, resize=24, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=["small", "gray", "as large"])


def assert_same(path: Path, spec: Preprocess) -> None:
    ours = preprocess_image(read_image(path, spec.mode, short_side=spec.resize), spec)
    assert np.array_equal(read(path, vars(spec)), ours), path.name


@each_spec
def test_every_format_is_read_alike(spec: Preprocess, tmp_path: Path) -> None:
    for name, content in samples().items():
        path = tmp_path / name
        path.write_bytes(content)
        assert_same(path, spec)


@each_spec
def test_every_mode_is_read_alike(spec: Preprocess, tmp_path: Path) -> None:
    for name, picture, _ in modes():
        path = tmp_path / f"{name}.tif"
        try:
            picture.resize((40, 20)).save(path)
        except (OSError, KeyError):  # no TIFF has this mode
            continue
        assert_same(path, spec)
    generator = np.random.default_rng(0)
    wide = generator.integers(0, 65536, (30, 40)).astype(np.uint16)
    for number, content in enumerate((tiff(wide, photometric=0), tiff(wide.astype(">u2")))):
        (tmp_path / f"{number}.tif").write_bytes(content)
        assert_same(tmp_path / f"{number}.tif", spec)
    Image.fromarray(wide).save(tmp_path / "key.png", transparency=int(wide[0, 0]))
    assert_same(tmp_path / "key.png", spec)


@each_spec
@pytest.mark.parametrize(
    "size", [(1, 1), (8, 10), (24, 24), (3, 500), (999, 7), (97, 61), (640, 480), (481, 1207)]
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_every_size_is_read_alike(
    spec: Preprocess, size: tuple[int, int], suffix: str, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    path = tmp_path / f"noise.{suffix}"
    Image.fromarray(noise).save(path)
    assert_same(path, spec)


@pytest.mark.parametrize(
    "content",
    [
        tiff(np.array([[0.5, 1]], np.float32), format=3),
        tiff(np.array([[-5, 5]], np.int16), format=2),
        tiff(np.array([[-5, 5]], np.int8), format=2),
        tiff(np.array([[0, 70_000]], np.uint32)),
    ],
)
def test_values_of_unknown_range_are_refused_alike(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.tif"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_image(path, "RGB")
    with pytest.raises(ValueError, match="the range of its values is unknown"):
        read(path, vars(SPECS[0]))


def test_it_imports_nothing_of_ours() -> None:
    imported = re.findall(r"^(?:from|import) (\w+)", PREDICT_SOURCE.read_text(), re.MULTILINE)
    assert set(imported) == {
        "io",
        "json",
        "sys",
        "pathlib",
        "typing",
        "numpy",
        "onnxruntime",
        "PIL",
    }


def test_it_names_the_classes_that_compress_predict_names(
    finished_run: Path, digit_folders: Path, tmp_path: Path
) -> None:
    write_bundle(finished_run, tmp_path / "bundle", n_images=10, noise=False)
    assert_same_classes([sys.executable], finished_run, digit_folders, tmp_path / "bundle")


@pytest.mark.slow
def test_it_runs_in_a_bare_environment(
    finished_run: Path, digit_folders: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "bare"
    write_bundle(finished_run, tmp_path / "bundle", n_images=10, noise=False)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--python", sys.executable, environment], check=True)
    python = environment / "bin/python"
    wanted = [f"{name}=={version(name)}" for name in ("numpy", "pillow", "onnxruntime")]
    subprocess.run([*uv, "pip", "install", "--python", python, *wanted], check=True)
    bare = [str(python), "-W", "error", "-I"]
    listed = [str(python), "-c", "import compress"]
    assert subprocess.run(listed, cwd=tmp_path, check=False, capture_output=True).returncode == 1
    assert_same_classes(bare, finished_run, digit_folders, tmp_path / "bundle")


def assert_same_classes(python: list[str], run: Path, images: Path, bundle: Path) -> None:
    paths = sorted(map(str, (images / "test").rglob("*.png")))
    command = [*python, str(bundle / "predict.py"), *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours = CliRunner().invoke(main, ["predict", str(run), *paths, "--top", "1"])
    assert len(paths) == 40
    assert done.stdout.splitlines() == [
        line.rpartition(" ")[0].rpartition(" ")[0] for line in ours.stdout.splitlines()
    ]
