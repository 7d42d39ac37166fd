"""Fashion-MNIST: finds or downloads its four files."""

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import numpy as np
from torchvision.datasets import FashionMNIST

from compress.errors import DataError
from compress.files import atomic_write, cache_folder

CLASS_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

# Checksums of the unpacked bytes, since mirrors and Debian compress them differently.
SHA256 = MappingProxyType(
    {
        "train-images-idx3-ubyte.gz": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte.gz": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    }
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MIRROR_TIMEOUT_S = 8
APT_TIMEOUT_S = 120


def read_fashion_mnist() -> dict[str, np.ndarray]:
    """Returns the four arrays by file name, from the first source with intact files.

    Returns:
        Images uint8 `[n, 28, 28]`, labels uint8 `[n]`.

    Raises:
        DataError: no source has them; the message lists what was tried.
    """
    cache = cache_folder() / "fashion-mnist"
    sources: dict[str, Callable[[], Path]] = {
        f"the cache {cache}": lambda: cache,
        f"Debian's folder {DEBIAN_FOLDER}": lambda: DEBIAN_FOLDER,
        "torchvision's mirrors": lambda: _fetch_from_mirrors(cache),
        f"Debian's package {DEBIAN_PACKAGE}": lambda: _fetch_debian_package(cache),
    }
    tried = []
    for source, folder in sources.items():
        try:
            return _read_verified(folder())
        except (OSError, EOFError, zlib.error, DataError, subprocess.SubprocessError) as error:
            tried.append(f"{source} ({_reason(error)})")
    raise DataError(
        "Fashion-MNIST is unavailable. Tried, in this order: "
        + "; ".join(tried)
        + f". Put the four .gz files into {cache}, run `apt-get install {DEBIAN_PACKAGE}`, or use "
        "--data digits, which needs no files."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no {Path(str(error.filename)).name}"
    if isinstance(error, subprocess.CalledProcessError):
        output = (error.stderr or "").strip().splitlines()
        return output[-1] if output else f"{error.cmd[0]} failed"
    return str(error) or type(error).__name__


def _read_verified(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for name, expected in SHA256.items():
        content = gzip.decompress((folder / name).read_bytes())
        if hashlib.sha256(content).hexdigest() != expected:
            raise DataError(f"{folder / name} is damaged: its checksum differs")
        arrays[name] = _parse_idx(content)
    return arrays


def _parse_idx(content: bytes) -> np.ndarray:
    """Parses the IDX format: 2 zero bytes, type 8 (uint8), rank, big-endian shape, data."""
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _fetch_from_mirrors(cache: Path) -> Path:

    problem: OSError | None = None
    for mirror in FashionMNIST.mirrors:
        try:
            with tempfile.TemporaryDirectory() as staging:
                for name in SHA256:
                    url = f"{mirror.rstrip('/')}/{name}"
                    with urllib.request.urlopen(url, timeout=MIRROR_TIMEOUT_S) as response:
                        (Path(staging) / name).write_bytes(response.read())
                return _move_into(cache, Path(staging))
        except OSError as error:
            problem = error
    raise problem or OSError("torchvision lists no mirror")


def _fetch_debian_package(cache: Path) -> Path:
    """Unpacks Debian's package into the cache; needs apt but not root."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise DataError("this machine has no apt-get")
    with tempfile.TemporaryDirectory() as staging:
        download = ("apt-get", "download", DEBIAN_PACKAGE)
        try:
            _run(download, staging)
        except subprocess.CalledProcessError:
            if os.geteuid() != 0:  # only root can refresh the package lists
                raise
            _run(("apt-get", "update"), staging)
            _run(download, staging)
        (package,) = Path(staging).glob("*.deb")
        _run(("dpkg-deb", "-x", package.name, "unpacked"), staging)
        return _move_into(cache, Path(staging) / "unpacked" / DEBIAN_FOLDER.relative_to("/"))


def _run(command: tuple[str, ...], folder: str) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=APT_TIMEOUT_S
    )


def _move_into(cache: Path, folder: Path) -> Path:
    """Copies the files into the cache once verified, each atomically."""
    _read_verified(folder)
    for name in SHA256:
        with atomic_write(cache / name) as partial:
            shutil.copyfile(folder / name, partial)
    return cache
