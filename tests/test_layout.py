"""Rules about the code itself: who may import whom, and what the wheel holds."""

import ast
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGE_MODULES = {
    "compress.teacher",
    "compress.distill.stage",
    "compress.prune.stage",
    "compress.quantize.stage",
    "compress.export.stage",
}
OUTER = {
    f"compress.{name}"
    for name in ("cli", "inspection", "program", "single", "pipeline", "options", "layers")
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("module", sorted(STAGE_MODULES))
def test_no_stage_imports_another_or_the_runner(module: str) -> None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert not imports(path) & (STAGE_MODULES | OUTER)


def test_only_one_file_touches_torch_pruning() -> None:
    users = [path for path in (ROOT / "compress").rglob("*.py") if "torch_pruning" in imports(path)]
    assert users == [ROOT / "compress/prune/groups.py"]


def test_text_files_are_read_and_written_in_utf_8() -> None:
    found = []
    for path in (*(ROOT / "compress").rglob("*.py"), *(ROOT / "bench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                text = node.func.attr in ("read_text", "write_text", "fdopen")
                if text and "encoding" not in {keyword.arg for keyword in node.keywords}:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_the_wheel_installs_and_runs_from_another_folder(tmp_path: Path) -> None:
    """The wheel that users install, without its dependencies: those come from this environment."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"compress"}
    assert "compress/models/resnet18.toml" in names
    assert "compress/pipelines/default.toml" in names
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (environment / "lib").glob("python*/site-packages")
    # Lends the dependencies, but behind the wheel: an editable install of this checkout stays out.
    lend = f"import sys; sys.path.append({str(Path(pytest.__file__).parents[1])!r})\n"
    (site / "lend.pth").write_text(lend)
    listed = subprocess.run(
        [str(environment / "bin" / "compress"), "models"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "resnet18" in listed.stdout
    where = [python, "-c", "import compress; print(compress.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(site))
