"""JSON and TOML that anybody may have written: its size and shape are checked before it is used."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

from compress.errors import CompressError

MAX_BYTES = 2**26
"""Of one file; a report of 2,000 classes and a thousand layers has a hundredth of it."""
MAX_DEPTH = 32
"""Of tables within tables; Python's parsers and pydantic recurse."""
MAX_INTEGER = 2**63 - 1
"""Torch's and NumPy's; TOML allows no larger one."""


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
