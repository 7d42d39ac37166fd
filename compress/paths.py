"""Folders this program uses, and writing to them without leaving half a file."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

UNFINISHED = re.compile(r".+\.\d+-[0-9a-f]{8}\.unfinished")
"""Names of files that are being written; what a kill leaves of one is nobody's data."""
ALMOST_NOTHING = 2**20
"""Free bytes below which a write that failed, failed because the disk is full."""


def cache_folder() -> Path:
    """Returns `$COMPRESS_CACHE`, else the platform's cache folder for this program."""
    return Path(os.environ.get("COMPRESS_CACHE") or platformdirs.user_cache_dir("compress"))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a path to write to; it becomes `path`, on disk, when the block ends well.

    The name is this process's own, so that two that write the same file do not disturb each other:
    the last one wins, and both wrote a whole file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{token}.unfinished")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException as error:
        # Libraries that write files themselves have errors of their own for a full disk.
        full = isinstance(error, Exception) and _is_full(path.parent)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if full and not isinstance(error, OSError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
    sync(path.parent)


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < ALMOST_NOTHING


def write_text(path: Path, text: str) -> None:
    r"""Writes a text file in UTF-8, whole or not at all.

    Of names that are not UTF-8, odd bytes are written as `\udcff`.
    """
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_checked(path: Path, content: bytes) -> None:
    """Writes bytes, whole or not at all, behind their SHA-256."""
    with atomic_write(path) as partial:
        partial.write_bytes(hashlib.sha256(content).digest() + content)


def read_checked(path: Path) -> bytes | None:
    """Returns what `write_checked` wrote; None if the file is missing or damaged."""
    if not path.is_file():
        return None
    raw = path.read_bytes()
    digest, content = raw[: hashlib.sha256().digest_size], raw[hashlib.sha256().digest_size :]
    return content if hashlib.sha256(content).digest() == digest else None


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk, where the system can tell."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left of files that it was writing in a folder."""
    for path in folder.rglob("*.unfinished"):
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
