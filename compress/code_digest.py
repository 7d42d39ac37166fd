"""What code decides a result: the files that a module imports, and the libraries they use."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

SITE_PACKAGES = ("site-packages", "dist-packages")
"""Folders that packages of all origins share; what lies in one is no part of its neighbor."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """A module with all that it imports."""

    digest: str
    """SHA-256 of the names and contents of its files."""
    libraries: tuple[str, ...]
    """Top-level packages that the files import and that lie elsewhere."""


@cache
def code_of(module: str, root: Path) -> Code:
    """Follows a module's imports, also those inside functions.

    Args:
        module: dotted name.
        root: the folder that its first part lies in; files outside of it count as libraries.
    """
    digest, libraries = hashlib.sha256(), set()
    waiting, met, seen = [module], set(), set()
    while waiting:
        name = waiting.pop()
        if name in met:
            continue
        met.add(name)
        parent, top = name.rpartition(".")[0], name.partition(".")[0]
        if parent:  # its __init__.py runs first
            waiting.append(parent)
        shared = root.name in SITE_PACKAGES and top != module.partition(".")[0]
        file = None if shared else _file_of(name, root)
        if file is None:
            libraries.add(top)
        elif file not in seen:
            seen.add(file)
            waiting += _imports(file, name)
    for file in sorted(seen):
        digest.update(f"{file.relative_to(root)}\0".encode())
        digest.update(file.read_bytes())
    return Code(
        digest=digest.hexdigest(), libraries=tuple(sorted(libraries - sys.stdlib_module_names))
    )


def library_versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Returns the installed versions of packages, by distribution; what is not installed is not."""
    known = packages_distributions()
    names = sorted({name for library in libraries for name in known.get(library, ())})
    return {name: version(name) for name in names}


def _file_of(module: str, root: Path) -> Path | None:
    """Returns a module's file; of `package.module.name` that of the longest part that has one."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        place = root.joinpath(*parts[:end])
        for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


def _imports(file: Path, module: str) -> Iterator[str]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module or "") if part)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
