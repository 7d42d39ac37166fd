"""Folders this program uses, and writing to them without leaving half a file."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

UNFINISHED = ".unfinished"
"""Ending of a file that is being written; what a kill leaves of it is nobody's data."""


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
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


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
    for path in folder.rglob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def replace_folder(new: Path, old: Path) -> None:
    """Puts the folder `new` in the place of `old`; at no moment is there half of either."""
    retired = old.with_name(f"{old.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.rename(retired)
    new.rename(old)
    shutil.rmtree(retired, ignore_errors=True)
