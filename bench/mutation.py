"""Mutation testing: do the tests of a room notice small faults in its code?

    make mutation          # python -m bench.mutation --samples 6 --seed 0

A room is a folder of `compress/`, or the files beside the folders. Of each, some mutants are drawn
(bench/mutants.py); each one stands alone in a scratch copy of the tree, in which the room's tests
run until one fails. A mutant that none notices survives. After a test for it has been written,
`--survivors` tries the survivors again. Writes bench/results/mutation.json and a page.

cosmic-ray 8 and mutmut 3 neither draw samples nor choose the tests by folder; mutmut also puts a
wrapper around each function, which our stage keys, digests of the source, would notice.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from bench.mutants import Mutant, find_mutants, mutated, sample
from bench.results_file import add_to_results, read_results
from compress.host import Host, describe_host
from compress.log import say
from compress.report.render import host_text
from compress.report.tables import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/mutation.json"
PAGE = RESULTS.with_suffix(".md")
TOP = "top level"
"""The room of the files beside the folders."""
AT_ONCE = 2
"""Rooms; most of a test is one thread's work."""
SLACK, SLACK_S = 4, 60
"""A mutant may take this many times as long as the unchanged code, and so many seconds more."""
HEADINGS = ("room", "mutants", "killed at once", "no fault", "killed by a new test", "alive")
NO_FAULT = {
    ("axes.grid(visible=True, alpha=0.3)", 14, "visible=True", "**{}"): (
        "any other argument shows the grid, too"
    ),
    ("lock_file.unlink(missing_ok=True)", 29, "missing_ok=True", "**{}"): (
        "the block suppresses that error, too"
    ),
    ("if size != images.shape[-1]:", 29, "1", "2"): "images are square",
    ("schedule = dataclasses.replace(schedule, min_steps=0, patience=0)", 55, "0", "1"): (
        "an epoch has one step at least"
    ),
    ("if CLOSE[0] <= worst <= CLOSE[1] or (worst > 1 and not is_met):", 57, "1", "2"): (
        "a budget that cannot be met gives the cheapest network again"
    ),
}
"""Mutants (`Mutant.identity`) that do what the code does, and why; they are not tried."""
INTRODUCTION = """\
Small faults, one at a time, in the code of each room (a folder of `compress/`, or the files beside
the folders): *killed at once* were those that the room's own tests noticed when the faults were
drawn, also by not ending. For the others a test was written, or they are no fault. Left out is what
has survived in code that has since been rewritten."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What became of one room's mutants."""

    variant: str
    """The room's name."""
    mutants: int
    killed: int
    survivors: tuple[Mutant, ...]
    killed_later: tuple[Mutant, ...]
    """Former survivors that `--survivors` has seen die."""
    seconds: float
    command: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds."""

    rows: tuple[Room, ...]
    samples: int
    seed: int
    host: Host


def rooms(root: Path) -> dict[str, list[str]]:
    """Returns the Python files of each room, for those that have tests."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "compress").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if room_tests(root, file):
            found.setdefault(room_of(file), []).append(file)
    return found


def room_of(file: str) -> str:
    """Returns the room that a file of the tree stands in."""
    parts = Path(file).parts
    return parts[1] if len(parts) > 2 else TOP


def room_tests(root: Path, file: str) -> list[str]:
    """Returns the test files that look after a file: its own one, and then its room's others."""
    room, own = room_of(file), f"test_{Path(file).stem}.py"
    folder, pattern = ("tests", own) if room == TOP else (f"tests/{room}", "test_*.py")
    found = (root / folder).glob(pattern)
    ordered = sorted(found, key=lambda path: (path.name != own, path))
    return [path.relative_to(root).as_posix() for path in ordered]


@contextmanager
def scratch_copy(root: Path) -> Iterator[Path]:
    """Copies a tree, without what git ignores, and yields the copy's path."""
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(listing, cwd=root, capture_output=True, check=True, text=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (Path(scratch, "tree") / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, Path(scratch, "tree") / name)
        yield Path(scratch, "tree")


def passes(tree: Path, tests: Sequence[str], timeout: float) -> bool:
    """Tells whether tests of a tree pass in time; what they write stays beside the tree."""
    temporary = tree.with_name("tmp")
    temporary.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(tree),  # also for child processes, before the installed checkout
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant's could be taken for the next one's
        "TMPDIR": str(temporary),
    }
    options = ("-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(temporary / "pytest"))
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def survivors_of(root: Path, mutants: Sequence[Mutant]) -> list[Mutant]:
    """Returns the mutants of one room that its tests do not notice.

    Raises:
        click.ClickException: the tests fail without any mutant.
    """
    alive = []
    with scratch_copy(root) as tree:
        files = {mutant.file for mutant in mutants}
        tests = list(dict.fromkeys(test for file in files for test in room_tests(tree, file)))
        started = time.perf_counter()
        if not passes(tree, tests, timeout=3600):
            raise click.ClickException(f"{', '.join(tests)}: the tests fail without any mutant")
        timeout = SLACK * (time.perf_counter() - started) + SLACK_S
        for mutant in mutants:
            path = tree / mutant.file
            before = path.read_bytes()
            path.write_bytes(mutated(before, mutant))
            survived = passes(tree, room_tests(tree, mutant.file), timeout)
            path.write_bytes(before)
            say(f"{'survived' if survived else 'killed'}: {description(mutant)}")
            if survived:
                alive.append(mutant)
    return alive


def description(mutant: Mutant) -> str:
    """Returns where a mutant is, and what it changes."""
    code = "" if mutant.code.startswith(mutant.old) else f" `{mutant.code}`:"
    return f"{mutant.file}:{mutant.line}{code} `{mutant.old}` -> `{mutant.new}`"


def new_row(root: Path, samples: int, seed: int, room: str) -> Room:
    """Draws a room's mutants and tries them."""
    started = time.perf_counter()
    mutants = [mutant for file in rooms(root)[room] for mutant in find_mutants(root, file)]
    drawn = sample(mutants, samples, seed)
    alive = [mutant for mutant in drawn if reason(mutant) is not None]
    alive += survivors_of(root, [mutant for mutant in drawn if mutant not in alive])
    return Room(
        variant=room,
        mutants=len(drawn),
        killed=len(drawn) - len(alive),
        survivors=tuple(alive),
        killed_later=(),
        seconds=round(time.perf_counter() - started, 1),
        command=f"python -m bench.mutation --samples {samples} --seed {seed}",
        date=datetime.now(UTC).date().isoformat(),
    )


def tried_again(root: Path, results: Results, room: str) -> Room:
    """Tries a room's survivors again, and forgets those whose code is there no more."""
    (row,) = (row for row in results.rows if row.variant == room)
    found = [current(root, mutant) for mutant in row.survivors]
    survivors = [mutant for mutant in found if mutant is not None]
    faults = [mutant for mutant in survivors if reason(mutant) is None]
    alive = survivors_of(root, faults) if faults else []
    killed = tuple(mutant for mutant in faults if mutant not in alive)
    return replace(
        row,
        mutants=row.mutants - found.count(None),
        survivors=tuple(mutant for mutant in survivors if mutant not in killed),
        killed_later=(*row.killed_later, *killed),
    )


def current(root: Path, mutant: Mutant) -> Mutant | None:
    """Returns where a mutant stands now, in its file or another one of its room."""
    files = sorted(rooms(root)[room_of(mutant.file)], key=lambda file: file != mutant.file)
    places = (found for file in files for found in find_mutants(root, file))
    return next((found for found in places if found.identity == mutant.identity), None)


def reason(mutant: Mutant) -> str | None:
    """Returns why a mutant is no fault, None if it is one."""
    return NO_FAULT.get(mutant.identity)


@click.command()
@click.option("--rooms", "names", default="", help="Only these, with commas.")
@click.option("--samples", default=6, show_default=True, help="Mutants of each room.")
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
@click.option("--survivors", is_flag=True, help="Try only the survivors of the results file again.")
def main(names: str, samples: int, seed: int, survivors: bool) -> None:
    """Put small faults into a copy of the code, and see whether the tests notice."""
    row: Callable[[str], Room]
    if survivors:
        old = read_results(Results, RESULTS)
        samples, seed = old.samples, old.seed
        known, row = [room.variant for room in old.rows], partial(tried_again, ROOT, old)
    else:
        known, row = list(rooms(ROOT)), partial(new_row, ROOT, samples, seed)
    chosen = names.split(",") if names else known
    if unknown := set(chosen) - set(known):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; allowed: {', '.join(known)}")
    host = describe_host()
    with ProcessPoolExecutor(AT_ONCE) as pool:
        for done in as_completed([pool.submit(row, room) for room in chosen]):
            results = Results(rows=(done.result(),), samples=samples, seed=seed, host=host)
            add_to_results(results, RESULTS, results_markdown)
    click.echo(PAGE)


def table(results: Results) -> str:
    """Returns how many mutants of each room were killed, and what became of the others."""
    counts = [
        (
            row.variant,
            row.mutants,
            row.killed,
            sum(reason(mutant) is not None for mutant in row.survivors),
            len(row.killed_later),
            sum(reason(mutant) is None for mutant in row.survivors),
        )
        for row in sorted(results.rows, key=lambda row: row.variant)
    ]
    total = ("all", *(sum(column) for column in list(zip(*counts, strict=True))[1:]))
    return markdown_table(HEADINGS, [[str(cell) for cell in row] for row in (*counts, total)])


def results_markdown(results: Results) -> str:
    """Returns the results as Markdown."""
    lines = []
    for row in results.rows:
        lines += [f"- {description(mutant)}; a test kills it now" for mutant in row.killed_later]
        lines += [
            f"- {description(mutant)}; {reason(mutant) or 'alive'}" for mutant in row.survivors
        ]
    others = "Not killed at once:\n\n" + "\n".join(sorted(lines))
    parts = ("# Mutation", INTRODUCTION, table(results), others, facts(results))
    return "\n\n".join(parts) + "\n"


def facts(results: Results) -> str:
    """Returns the command that made the results, the dates, and the machine."""
    dates = sorted({row.date for row in results.rows})
    return f"`{results.rows[0].command}`, {', '.join(dates)}, {host_text(results.host)}."


if __name__ == "__main__":
    main()
