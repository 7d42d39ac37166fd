"""What is in a bundle, and reading one that anyone may have written."""

import errno
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from compress.errors import CompressError
from compress.files import file_digest, parse_json, printable, read_text

MANIFEST, CARD, LABELS, PREDICT = "manifest.json", "README.md", "labels.json", "predict.py"
SAMPLES = "test.npz"
"""uint8 `images` `[n, channels, size, size]`, int64 `labels` `[n]` (-1: unknown), and float32
`logits of FILE` `[n, classes]` for each ONNX file."""
BENCHMARKS = "benchmarks.jsonl"
"""A row for each host that measured the bundle; not in the manifest, since it grows."""
REQUIRED = {CARD, LABELS, PREDICT, SAMPLES}
ZIP = ".zip"
MAX_BYTES = 2**32
"""Largest bundle, unpacked."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Size and content of a file."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    format: Literal[1] = 1
    name: str
    ship: str
    """The ONNX file to use."""
    models: tuple[str, ...]
    """All ONNX files."""
    images: Literal["test", "noise"]
    """Whether the images in `test.npz` are from the test split or random."""
    files: Mapping[str, FileFacts]

    def __post_init__(self) -> None:
        if not all(_is_plain(name) for name in self.files):
            raise CompressError("its files must be names without folders")
        if self.ship not in self.models or not {*self.models, *REQUIRED} <= set(self.files):
            raise CompressError(f"its files must include {', '.join(sorted(REQUIRED))}, and models")
        if sum(facts.size_bytes for facts in self.files.values()) > MAX_BYTES:
            raise CompressError(f"its files have more than {MAX_BYTES // 2**30} GiB")


def is_bundle(path: Path) -> bool:
    """Returns whether a path is a bundle's folder."""
    return (path / MANIFEST).is_file()


@contextmanager
def opened(bundle: Path) -> Iterator[tuple[Path, Manifest]]:
    """Yields the folder and the manifest of a bundle, unpacked if it is a zip, all files verified.

    Raises:
        CompressError: a file is missing, changed, or too large, or the manifest is damaged.
    """
    if bundle.is_dir():
        yield bundle, _verified(bundle)
        return
    with TemporaryDirectory() as folder:
        _unpack(bundle, Path(folder))
        yield Path(folder), _verified(Path(folder), shown=bundle)


def file_facts(path: Path) -> FileFacts:
    """Returns the size and digest of a file."""
    return FileFacts(size_bytes=path.stat().st_size, sha256=file_digest(path))


def _verified(folder: Path, *, shown: Path | None = None) -> Manifest:
    """Reads a bundle's manifest, and compares every file with it; `shown` is its name."""
    shown = shown or folder
    try:
        text = read_text(folder / MANIFEST)
        manifest = TypeAdapter(Manifest).validate_python(parse_json(text))
    except (OSError, ValueError):
        raise CompressError(
            f"{shown} is not a bundle, or its {MANIFEST} is damaged; `compress bundle` writes one"
        ) from None
    for name, facts in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CompressError(f"{shown} is incomplete: {printable(name)} is missing; get it anew")
        if path.stat().st_size != facts.size_bytes or file_facts(path) != facts:
            raise CompressError(f"{printable(name)} in {shown} was changed or damaged; get it anew")
    return manifest


def _unpack(path: Path, folder: Path) -> None:
    """Unpacks an untrusted zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not all(_is_plain(entry.filename) for entry in entries):
                raise CompressError("it has files in folders")
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise CompressError(f"it unpacks to more than {MAX_BYTES // 2**30} GiB")
            for entry in entries:  # zipfile reads no more than `file_size`
                with archive.open(entry) as packed, (folder / entry.filename).open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except CompressError as error:
        raise CompressError(f"{path} is not a bundle: {error}") from None
    except Exception as error:  # damaged files cause errors of zipfile, zlib, lzma, and struct
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # such as a full disk
        raise CompressError(f"{path} is not a zip file, or is damaged; get it anew") from None


def _is_plain(name: str) -> bool:
    """Returns whether a name denotes a file in the folder itself, on every system."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")
