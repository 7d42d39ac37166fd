from pathlib import Path

from compress.architectures.code_digest import code_digest


def digest(root: Path, module: str) -> str:
    code_digest.cache_clear()
    return code_digest(module, root)


def test_the_digest_follows_imports_and_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "ours"
    package.mkdir()
    files = {
        "__init__.py": "",
        "main.py": "from . import used\ndef late():\n    from ours.later import x\n",
        "used.py": "import os\n",
        "later.py": "x = 1\n",
        "unused.py": "",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    before = digest(tmp_path, "ours.main")
    (package / "unused.py").write_text("y = 1\n")
    assert digest(tmp_path, "ours.main") == before
    seen = {before}
    for name in ("__init__.py", "main.py", "used.py", "later.py"):
        with (package / name).open("a") as file:
            file.write("# changed\n")
        seen.add(digest(tmp_path, "ours.main"))
    assert len(seen) == 5


def test_neighbors_in_site_packages_do_not_count(tmp_path: Path) -> None:
    root = tmp_path / "site-packages"
    root.mkdir()
    (root / "ours.py").write_text("import other\n")
    (root / "other.py").write_text("")
    before = digest(root, "ours")
    (root / "other.py").write_text("x = 1\n")
    assert digest(root, "ours") == before
