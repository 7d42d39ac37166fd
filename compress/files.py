"""The cache folder; files written whole or not at all; text, JSON and TOML checked before use."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from compress.errors import CompressError

UNFINISHED = re.compile(r".+\.\d+-[0-9a-f]{8}\.unfinished")
"""Names of files that are being written; what a kill leaves of one is nobody's data."""
ALMOST_NOTHING = 2**20
"""Free bytes below which a write that failed, failed because the disk is full."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line breaks, and what stands for the bytes of a name that is not UTF-8."""
MAX_BYTES = 2**26
"""Of one file; a report of 2,000 classes and a thousand layers has a hundredth of it."""
MAX_DEPTH = 32
"""Of tables within tables; Python's parsers and pydantic recurse."""
MAX_INTEGER = 2**63 - 1
"""Torch's and NumPy's; TOML allows no larger one."""


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


def file_digest(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> str:
    """Returns readable JSON of a dataclass or of plain data."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes a dataclass or plain data as readable JSON, atomically."""
    write_text(path, to_json(value))


def read_text(path: Path) -> str:
    """Returns a text file's content.

    Raises:
        CompressError: it is no file, too large or not in UTF-8.
        OSError: it cannot be read.
    """
    if not path.is_file():  # a device or a pipe would be read for ever
        raise CompressError("it is no file")
    if path.stat().st_size > MAX_BYTES:
        raise CompressError(f"it has more than {MAX_BYTES // 2**20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CompressError("it is not text in UTF-8") from None


def parse_json(text: str | bytes) -> Any:
    """Returns what JSON says.

    Raises:
        CompressError: it is not JSON, or see `check_plain`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompressError(f"it is no JSON: {error}") from None
    check_plain(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Returns what TOML says.

    Raises:
        CompressError: it is not TOML, or see `check_plain`.
    """
    try:
        value = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompressError(str(error)) from None
    check_plain(value)
    return value


def check_plain(value: object) -> None:
    """Makes sure that a value can be used and written again as JSON.

    Raises:
        CompressError: it nests deeply, or holds a number that is not finite or has more than 64
            bits, or what is no text, number, truth value, list or table, such as TOML's dates.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise CompressError(f"{item} is not finite")
            elif isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise CompressError("an integer has more than 64 bits")
            elif not isinstance(item, str | int | float | None):
                raise CompressError(f"{item!s:.40} is no text, number, list or table; quote it")
        if not below:
            return
        level = below
    raise CompressError(f"it nests more than {MAX_DEPTH} levels deep")


def readable_name(raw: bytes) -> str:
    r"""Returns a file's name as text: UTF-8, other bytes written as `\xff`."""
    return raw.decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    r"""Returns text on one line, its unprintable characters written as in Python: `\n`, `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
