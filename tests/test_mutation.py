"""What `make mutation` does at length, on a few lines of code."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench.mutants import find_mutants, mutated, sample
from bench.mutation import current, passes, room_tests, rooms, scratch_copy, survivors_of

ROOT = Path(__file__).parents[1]
CODE = '''\
LIMIT = 3


def over(values: list[int], limit: int = 5) -> bool:
    """Of 7."""
    assert limit > 1
    if limit < 0:
        raise ValueError(f"{limit + 1}")
    say("at least", 1 + 1)
    return max(values) > limit
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "compress").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "compress/__init__.py").touch()
    (tmp_path / "compress/two.py").write_text("def two() -> int:\n    return 1 + 1\n", "utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def write_test(tree: Path, condition: str) -> None:
    lines = ("from compress.two import two", "", "def test_two():", f"    assert {condition}", "")
    (tree / "tests/test_two.py").write_text("\n".join(lines), encoding="utf-8")


def mutants_of(code: str, tmp_path: Path) -> list[tuple[str, str]]:
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    return [(mutant.old, mutant.new) for mutant in find_mutants(tmp_path, "code.py")]


def test_what_runs_is_mutated_and_what_is_told_is_not(tmp_path: Path) -> None:
    assert set(mutants_of(CODE, tmp_path)) == {
        ("limit < 0", "limit <= 0"),
        ("limit < 0", "limit >= 0"),
        ("0", "1"),
        ("max(values) > limit", "None"),
        ("max(values) > limit", "max(values) >= limit"),
        ("max(values) > limit", "max(values) <= limit"),
        ("max(values)", "min(values)"),
    }


@pytest.mark.parametrize(
    ("statement", "changes"),
    [
        ("x = a and b", {("a and b", "a or b")}),
        ("x = 0.5", {("0.5", "1.0")}),
        ("x = True", {("True", "False")}),
        ("x = not a", {("not a", "a")}),
        ("x = a + b", {("a + b", "a - b")}),
        ("x: list[3] = a is b", {("a is b", "a is not b")}),
        ("f(a, key=b)", {("f(a, key=b)", "pass"), ("key=b", "**{}")}),
        ("x = zip(a, b, strict=True)", set()),
        ("x = a.all()", {("a.all()", "a.any()")}),
        ("x = [one for one in a if one]", {("one", "not one")}),
        ("while a: pass", {("a", "not a")}),
    ],
)
def test_each_kind_of_fault(tmp_path: Path, statement: str, changes: set[tuple[str, str]]) -> None:
    assert set(mutants_of(f"def f():\n    {statement}\n", tmp_path)) == changes


def test_every_mutant_of_a_file_is_code_that_differs() -> None:
    file = "compress/run/folder.py"
    source = (ROOT / file).read_bytes()
    changed = [mutated(source, mutant) for mutant in find_mutants(ROOT, file)]
    assert len(set(changed)) == len(changed) > 100
    assert source not in changed
    for code in changed:
        compile(code, file, "exec")


def test_an_edit_elsewhere_leaves_the_sample_as_it_is(tmp_path: Path) -> None:
    def drawn(code: str) -> list[tuple[str, str]]:
        (tmp_path / "code.py").write_text(code, encoding="utf-8")
        mutants = sample(find_mutants(tmp_path, "code.py"), 3, seed=0)
        return [(mutant.old, mutant.new) for mutant in mutants]

    assert drawn(CODE) == drawn("def none() -> None:\n    pass\n\n\n" + CODE)


def test_every_room_has_tests() -> None:
    found = rooms(ROOT)
    folders = {path.parent.name for path in (ROOT / "compress").glob("*/__init__.py")}
    assert set(found) == {"top level", *folders}
    assert room_tests(ROOT, "compress/cache.py") == ["tests/test_cache.py"]
    first, *others = room_tests(ROOT, "compress/run/key.py")
    assert first == "tests/run/test_key.py"
    assert {first, *others} == {f"tests/run/{one.name}" for one in ROOT.glob("tests/run/test_*.py")}


def test_a_mutant_survives_what_does_not_notice_it(tree: Path) -> None:
    mutants = find_mutants(tree, "compress/two.py")[:2]
    assert [mutant.new for mutant in mutants] == ["None", "1 - 1"]
    write_test(tree, "two() is not None")
    assert survivors_of(tree, mutants) == mutants[1:]
    write_test(tree, "two() == 2")
    assert survivors_of(tree, mutants) == []
    assert "1 + 1" in (tree / "compress/two.py").read_text(encoding="utf-8")


def test_a_survivor_is_found_again_unless_its_code_is_gone(tree: Path) -> None:
    path = tree / "compress/two.py"
    mutant = find_mutants(tree, "compress/two.py")[1]
    write_test(tree, "True")
    path.write_text(f"\n\n{path.read_text('utf-8')}", encoding="utf-8")
    assert current(tree, mutant) == replace(mutant, line=4, end_line=4)
    path.write_text("def two() -> int:\n    return 2\n", encoding="utf-8")
    assert current(tree, mutant) is None


def test_what_does_not_end_is_no_pass(tree: Path) -> None:
    write_test(tree, "two() == 2 and not __import__('time').sleep(60)")
    with scratch_copy(tree) as copy:
        assert not passes(copy, ["tests/test_two.py"], timeout=1)
