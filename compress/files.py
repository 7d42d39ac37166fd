"""The cache folder, atomic writes, and checked reading of text, JSON, and TOML."""

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
"""Names of files that are being written; a killed process may leave some behind."""
ALMOST_NOTHING = 2**20
"""A failed write is attributed to a full disk if fewer bytes are free."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line breaks, and surrogates that represent non-UTF-8 bytes."""
MAX_BYTES = 2**26
"""Largest file; a report on 2,000 classes and 1,000 layers is a hundredth of this."""
MAX_DEPTH = 32
"""Deepest nesting; Python's parsers and pydantic recurse."""
MAX_INTEGER = 2**63 - 1
"""Largest int64 of torch, NumPy, and TOML."""


def cache_folder() -> Path:
    """Returns `$COMPRESS_CACHE`, else the platform's cache folder for this program."""
    return Path(os.environ.get("COMPRESS_CACHE") or platformdirs.user_cache_dir("compress"))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path; on success it replaces `path`, flushed to disk.

    The name is unique, so of two processes that write the same file, the last one wins and the
    file is always complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{token}.unfinished")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException as error:
        # Libraries that write files report a full disk with their own error types.
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
    r"""Writes a text file in UTF-8, atomically.

    Bytes of names that are not UTF-8 are written as `\udcff`.
    """
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_checked(path: Path, content: bytes) -> None:
    """Writes bytes preceded by their SHA-256, atomically."""
    with atomic_write(path) as partial:
        partial.write_bytes(hashlib.sha256(content).digest() + content)


def read_checked(path: Path) -> bytes | None:
    """Returns bytes written by `write_checked`; None if the file is missing or damaged."""
    if not path.is_file():
        return None
    raw = path.read_bytes()
    digest, content = raw[: hashlib.sha256().digest_size], raw[hashlib.sha256().digest_size :]
    return content if hashlib.sha256(content).digest() == digest else None


def sync(path: Path) -> None:
    """Flushes a file or folder to disk, where the system supports it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Removes partial files that killed processes left in a folder."""
    for path in folder.rglob("*.unfinished"):
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> str:
    """Returns indented JSON of plain data and dataclasses."""
    return json.dumps(value, indent=2, allow_nan=False, default=dataclasses.asdict) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes plain data and dataclasses as indented JSON, atomically."""
    write_text(path, to_json(value))


def read_text(path: Path) -> str:
    """Returns a text file's content.

    Raises:
        CompressError: it is not a file, too large, or not UTF-8.
        OSError: it cannot be read.
    """
    if not path.is_file():  # devices and pipes have no end
        raise CompressError("it is not a file")
    if path.stat().st_size > MAX_BYTES:
        raise CompressError(f"it is larger than {MAX_BYTES // 2**20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CompressError("it is not UTF-8 text") from None


def parse_json(text: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        CompressError: it is not JSON; see also `check_plain`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompressError(f"it is not JSON: {error}") from None
    check_plain(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parses TOML.

    Raises:
        CompressError: it is not TOML; see also `check_plain`.
    """
    try:
        value = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompressError(str(error)) from None
    check_plain(value)
    return value


def check_plain(value: object) -> None:
    """Ensures that a value consists of plain data that JSON can represent.

    Raises:
        CompressError: it is nested too deeply, or contains a number that is not finite or exceeds
            64 bits, or a value of another type, such as TOML's dates.
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
                raise CompressError(
                    f"{item!s:.40} is not a string, number, list, or table; quote it"
                )
        if not below:
            return
        level = below
    raise CompressError(f"it is nested more than {MAX_DEPTH} levels deep")


def readable_name(raw: bytes) -> str:
    r"""Decodes a file name as UTF-8, with other bytes written as `\xff`."""
    return raw.decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    r"""Returns text on one line, with unprintable characters escaped: `\n`, `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
