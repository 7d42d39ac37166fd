"""Folders this program uses, and writing to them without leaving half a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Returns `$COMPRESS_CACHE`, else the platform's cache folder for this program."""
    return Path(os.environ.get("COMPRESS_CACHE") or platformdirs.user_cache_dir("compress"))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a path to write to; it becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    partial.replace(path)


def replace_folder(new: Path, old: Path) -> None:
    """Puts the folder `new` in the place of `old`; at no moment is there half of either."""
    retired = old.with_name(f"{old.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.rename(retired)
    new.rename(old)
    shutil.rmtree(retired, ignore_errors=True)
