"""Digests of code: a module and everything that it imports."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SITE_PACKAGES = ("site-packages", "dist-packages")
"""Folders shared by unrelated packages, whose other packages do not count."""


@cache
def code_digest(module: str, root: Path) -> str:
    """Digests a module and its imports, including those inside functions.

    Args:
        module: dotted name.
        root: the folder that contains its top-level package; other imports do not count.

    Returns:
        SHA-256 of the names and contents of the files.
    """
    top = module.partition(".")[0]
    waiting, met, files = [module], set(), set()
    while waiting:
        name = waiting.pop()
        shared = root.name in SITE_PACKAGES and name.partition(".")[0] != top
        if not name or name in met or shared:
            continue
        met.add(name)
        waiting.append(name.rpartition(".")[0])  # a package's __init__.py runs first
        file = _file_of(name, root)
        if file is not None and file not in files:
            files.add(file)
            waiting += _imports(file, root)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _file_of(module: str, root: Path) -> Path | None:
    """Returns a module's file; None for names inside modules and modules outside the root."""
    place = root.joinpath(*module.split("."))
    files = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imports(file: Path, root: Path) -> Iterator[str]:
    """Yields the modules that a file imports, and the imported names, which may be modules too."""
    package = file.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*base, *([node.module] if node.module else ())))
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
