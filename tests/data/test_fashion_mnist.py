import gzip
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from compress.data import fashion_mnist
from compress.data.fashion_mnist import SHA256, read_fashion_mnist
from compress.errors import DataError
from compress.files import cache_folder


def test_the_real_set_is_found_and_complete() -> None:
    train, train_labels, test, test_labels = read_fashion_mnist().values()
    assert train.shape == (60000, 28, 28)
    assert test.shape == (10000, 28, 28)
    assert np.bincount(train_labels).tolist() == [6000] * 10
    assert np.bincount(test_labels).tolist() == [1000] * 10
    # Known moments of the training images (the usual normalization constants).
    assert train.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert train.std() / 255 == pytest.approx(0.3530, abs=1e-4)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Debian folder, mirrors that refuse, and an apt-get that finds nothing."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/nowhere/fashion-mnist"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    def fail(command: tuple[str, ...], _: str) -> None:
        raise subprocess.CalledProcessError(100, command, stderr="E: no package")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(fashion_mnist, "_run", fail)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own with a copy of the real files."""
    read_fashion_mnist()
    sources = (cache_folder() / "fashion-mnist", fashion_mnist.DEBIAN_FOLDER)
    source = next(folder for folder in sources if (folder / next(iter(SHA256))).is_file())
    shutil.copytree(source, tmp_path / "fashion-mnist")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    return tmp_path / "fashion-mnist"


def test_the_cache_alone_is_enough(files: Path, no_network: None) -> None:
    assert len(read_fashion_mnist()) == 4


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_cache_is_noticed(files: Path, no_network: None, damage: str) -> None:
    labels = files / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    if damage == "truncated":
        labels.write_bytes(content[:2000])
    elif damage == "changed":
        raw = bytearray(gzip.decompress(content))
        raw[-1] ^= 1
        labels.write_bytes(gzip.compress(raw))
    else:
        labels.unlink()
    with pytest.raises(DataError, match="is unavailable") as caught:
        read_fashion_mnist()
    message = str(caught.value)
    for part in ("the cache", "mirrors (connection refused)", "(E: no package)", "--data digits"):
        assert part in message


def test_files_are_taken_from_the_next_source_and_kept(
    files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A real Debian package, built from the real files, is unpacked into an empty cache."""
    package = tmp_path / "package"
    inside = package / "usr/share/datasets/fashion-mnist"
    shutil.copytree(files, inside)
    control = package / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: test\n"
    )
    deb = tmp_path / "dataset.deb"
    subprocess.run(["dpkg-deb", "-Znone", "-b", package, deb], check=True, capture_output=True)
    real_run = fashion_mnist._run

    def run(command: tuple[str, ...], folder: str) -> None:
        if command[0] == "apt-get":
            shutil.copy(deb, folder)
        else:
            real_run(command, folder)

    monkeypatch.setattr(fashion_mnist, "_run", run)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/usr/share/datasets/fashion-mnist"))
    empty = tmp_path / "empty"
    monkeypatch.setenv("COMPRESS_CACHE", str(empty))
    folder = fashion_mnist._fetch_debian_package(empty / "fashion-mnist")
    assert sorted(path.name for path in folder.iterdir()) == sorted(SHA256)
    assert len(read_fashion_mnist()) == 4
