"""Rules about the code itself: who may import whom, and what the wheel holds."""

import ast
import subprocess
import sys
import venv
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("errors", "host"),
    ("files", "trust"),
    ("log", "settings"),
    ("cache", "distributed"),
    ("data",),
    ("architectures",),
    ("checkpoint", "onnx_file"),
    ("measure", "train"),
    ("int8",),
    ("kd", "doctor"),
    ("teacher", "distill", "prune", "quantize", "export"),
    ("insights",),
    ("report",),
    ("run",),
    ("bundle",),
    ("api", "cli"),
)
"""From the ground up. A room imports from lower floors only, so rooms of one floor, the stages too,
know nothing of each other."""
TOP_MODULES = 10
LATE_IMPORTS = {"cli"}
"""Rooms in which a function may import: torch takes seconds, and help texts must answer at once."""


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "compress").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """All that a file imports, at any level and under any condition."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def arrows() -> dict[str, set[str]]:
    """The modules that each module of ours imports."""
    known = modules()
    found = {}
    for name, path in known.items():
        named = {module for module in imports(path) if module in known and module != "compress"}
        inner = {module for module in named if any(one.startswith(f"{module}.") for one in named)}
        found[name] = named - inner - {name}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_floor() -> None:
    rooms = [name for floor in FLOORS for name in floor]
    assert len(rooms) == len(set(rooms))
    there = {room(name) for name in modules() if "." in name} - {"__main__"}
    assert there == set(rooms)
    top = [path for path in (ROOT / "compress").glob("*.py") if not path.name.startswith("__")]
    assert len(top) <= TOP_MODULES


def test_imports_go_down() -> None:
    floor_of = {name: place for place, floor in enumerate(FLOORS) for name in floor}
    wrong = [
        f"{module} -> {other}"
        for module, others in arrows().items()
        for other in others
        if "." in module
        and module != "compress.__main__"
        and room(module) != room(other)
        and floor_of[room(module)] <= floor_of[room(other)]
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    TopologicalSorter(arrows()).prepare()  # raises CycleError, which names them


def test_imports_stand_at_the_top_of_files() -> None:
    late = set()
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nested = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        if "." in name and set(nested) - set(tree.body):
            late.add(room(name))
    assert late <= LATE_IMPORTS


def test_only_one_file_touches_torch_pruning() -> None:
    users = [path for path in (ROOT / "compress").rglob("*.py") if "torch_pruning" in imports(path)]
    assert users == [ROOT / "compress/prune/groups.py"]


def test_text_files_are_read_and_written_in_utf_8() -> None:
    found = []
    for path in (*(ROOT / "compress").rglob("*.py"), *(ROOT / "bench").rglob("*.py")):
        if any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            continue  # environments of other tools
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                text = node.func.attr in ("read_text", "write_text", "fdopen")
                if text and "encoding" not in {keyword.arg for keyword in node.keywords}:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_the_wheel_installs_and_runs_from_another_folder(tmp_path: Path) -> None:
    """The wheel that users install, without its dependencies: those come from this environment."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", str(ROOT)]
    build += ["--outdir", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"compress"}
    assert "compress/models/resnet18.toml" in names
    assert "compress/pipelines/default.toml" in names
    environment = tmp_path / "environment"
    venv.create(environment)
    python = str(environment / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", str(wheel)]
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
