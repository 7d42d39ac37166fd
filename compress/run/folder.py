"""A run's folder on disk: its lock, and replacing stages without data loss.

Files that this program did not write are never removed or moved. A stage is written into
`<stage>.partial` and renamed when complete; the stage it replaces is `<stage>.retired` between the
two renames. Whenever the process is killed, the next run of the same command finds either the old
or the new stage, intact.
"""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from compress.cache import MEASURED
from compress.checkpoint import (
    DESCRIPTION,
    FLOAT_FILE,
    HISTORY,
    INT8_FILE,
    MODEL_FILE,
    REPORT_HTML,
    REPORT_JSON,
    REPORT_MD,
    TENSORS,
)
from compress.data.dataset import Data
from compress.errors import CompressError
from compress.files import UNFINISHED, file_digest, remove_unfinished, sync, write_text
from compress.log import say
from compress.report.layers import LAYERS_HTML, LAYERS_JSON
from compress.run.lookup import RUN_FILE, is_run
from compress.train.state import STATE

LOCK, OWNER = ".lock", ".owner.json"
"""The lock of the process that works on the run, and its description."""
STORE = "teacher-logits"
"""Stored teacher logits, shared by the run's stages."""
WORK_FILE = "work.json"
"""In a stage's working folder: the stage's key, and the seconds spent so far."""
STAGE_FILES = frozenset(
    {
        *(TENSORS, DESCRIPTION, MODEL_FILE, FLOAT_FILE, INT8_FILE),
        *(REPORT_JSON, REPORT_MD, REPORT_HTML, HISTORY, LAYERS_JSON, LAYERS_HTML),
        *(STATE, WORK_FILE),
    }
)
"""All files that compress may write to a stage's folder."""
STAGE_SUBFOLDERS = re.compile(rf"iteration-\d+|sparse|(alone|taught)(-timed)?|{STORE}|{MEASURED}")
"""Subfolders of a stage's folder, with files of the same names."""
NAMED = 3
"""Maximum number of foreign files named in a message."""


@contextmanager
def owned_run(run: Path) -> Iterator[None]:
    """Creates a run's folder if necessary, and locks it.

    Raises:
        CompressError: another process holds the lock, or the folder is not a run's.
    """
    if run.exists() and not is_run(run) and _content(run):
        raise CompressError(
            f"{run} is neither empty nor a run folder ({_some(_content(run))}); choose another "
            "folder with --out"
        )
    made = [place for place in (run, *run.parents) if not place.exists()]
    try:
        with _locked(run, run / LOCK, run / OWNER):
            remove_unfinished(run)
            try:
                yield
            finally:
                if _content(run) == {RUN_FILE}:  # rejected before any work was done
                    (run / RUN_FILE).unlink()
    finally:
        with suppress(OSError):  # not empty
            for place in made:
                place.rmdir()


@contextmanager
def owned_folder(folder: Path) -> Iterator[None]:
    """Locks the folder of a checkpoint outside a run.

    Raises:
        CompressError: another process holds the lock.
    """
    lock = folder.with_name(f".{folder.name}{LOCK}")
    with _locked(folder, lock, folder.with_name(f".{folder.name}{OWNER}")):
        yield


@contextmanager
def _locked(what: Path, lock_file: Path, owner_file: Path) -> Iterator[None]:
    """Holds a lock that the operating system releases however the process ends."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CompressError(
            f"{what} is in use by {_owner(owner_file)}; wait for it or choose another folder with "
            "--out"
        ) from None
    try:
        if owner_file.is_file():
            say(f"  {what} was left unfinished by {_owner(owner_file)}; resuming")
        facts = {"pid": os.getpid(), "host": platform.node(), "since": _now()}
        write_text(owner_file, json.dumps(facts))
        yield
    finally:
        with suppress(OSError):  # a folder that became read-only, or full
            owner_file.unlink(missing_ok=True)
            lock_file.unlink(missing_ok=True)
        lock.release()


def _owner(owner_file: Path) -> str:
    try:
        facts = json.loads(owner_file.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']} (since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def claim_run(run: Path, *, model: str, pipeline: str, data: Data) -> None:
    """Records a run's model, recipe, and data, or checks that they match the recorded ones.

    The folder's name does not distinguish datasets, cards, or recipes of the same name. One that
    was moved or copied counts as the same.

    Raises:
        CompressError: the folder belongs to another run.
    """
    facts = {
        "model": _named_file(model),
        "pipeline": _named_file(pipeline),
        "data": {"name": data.name, "content": data.split_fingerprint},
    }
    path = run / RUN_FILE
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            others = [name for name in facts if not facts[name].items() & before[name].items()]
            was = ", ".join(f"the {name} {before[name]['name']}" for name in others)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CompressError(
                f"{path} is damaged; remove it if {run} is a run of {model} on {data.name}"
            ) from None
        if others:
            now = ", ".join(facts[name]["name"] for name in others)
            raise CompressError(
                f"{run} is a run of {was}, not of {now}; choose another folder with --out"
            )
    write_text(path, json.dumps(facts, indent=2) + "\n")


def _named_file(name: str) -> dict[str, str]:
    """Returns what identifies a card or a recipe."""
    if not name.endswith(".toml"):  # built in
        return {"name": name, "content": name}
    return {"name": str(Path(name).resolve()), "content": file_digest(Path(name))}


def check_target(folder: Path) -> None:
    """Checks that a stage may be written to a folder.

    Restores a stage whose replacement was interrupted between two renames.

    Raises:
        CompressError: the folder, or a sibling used for replacing it, contains foreign files.
    """
    partial, retired = partial_folder(folder), _retired(folder)
    for place in (folder, partial, retired):
        if not place.exists() and not place.is_symlink():
            continue
        if place.is_symlink() or not place.is_dir():
            raise CompressError(f"{place} is not a folder; choose another one with --out")
        signed = _read_work(place) is not None if place == partial else _is_described(place)
        foreign = _foreign(place) if signed else _content(place)
        if foreign:
            raise CompressError(
                f"{place} would be replaced, but contains files that compress did not write "
                f"({_some(foreign)}); move them or choose another folder with --out"
            )
    if retired.is_dir():
        if folder.exists():
            _remove(retired)
        else:
            retired.rename(folder)
            say(f"  restored {folder}: its replacement was interrupted")


def _is_described(folder: Path) -> bool:
    """Returns whether a folder is a checkpoint, perhaps a damaged one."""
    try:
        return "lineage" in json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (ValueError, TypeError):
        return (folder / TENSORS).is_file()


def begin(folder: Path, key: str) -> float:
    """Creates a stage's working folder, and empties it unless it was made for the same key.

    Returns:
        Seconds already spent on the stage, up to the last file written.
    """
    partial = partial_folder(folder)
    work = partial / WORK_FILE
    before = _read_work(partial)
    if before is None or before[0] != key:
        if partial.is_dir() and _content(partial):
            say(
                f"  discarding {partial}: it was started with different settings, networks, or code"
            )
        _remove(partial)
        partial.mkdir(parents=True, exist_ok=True)
        before = (key, 0.0)
    else:
        remove_unfinished(partial)
        last_sign = max(path.stat().st_mtime for path in partial.rglob("*"))
        before = (key, before[1] + last_sign - work.stat().st_mtime)
    write_text(work, json.dumps({"key": key, "seconds": before[1]}))
    return before[1]


def _read_work(partial: Path) -> tuple[str, float] | None:
    """Returns a working folder's key and seconds; None if it is not ours."""
    try:
        raw = json.loads((partial / WORK_FILE).read_text(encoding="utf-8"))
        return str(raw["key"]), float(raw["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def put_in_place(folder: Path) -> None:
    """Renames a stage's complete working folder to its checkpoint's."""
    partial, retired = partial_folder(folder), _retired(folder)
    for path in partial.rglob(STATE):  # pruning trains in subfolders
        path.unlink()
    for work in (STORE, MEASURED):  # outside a run no other stage shares the teacher logits
        if (partial / work).is_dir():
            shutil.rmtree(partial / work)
    remove_unfinished(partial)
    foreign = _foreign(partial)
    assert not foreign, f"stage files without an entry in STAGE_FILES: {foreign}"
    check_target(folder)  # hours may have passed
    if folder.exists():
        folder.rename(retired)
    partial.rename(folder)
    sync(folder.parent)
    (folder / WORK_FILE).unlink(missing_ok=True)
    _remove(retired)


def partial_folder(folder: Path) -> Path:
    """Returns a stage's working folder."""
    return folder.with_name(f"{folder.name}.partial")


def _retired(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.retired")


def _content(folder: Path) -> set[str]:
    """Returns the names in a folder, without those that a killed process may leave behind."""
    names = {path.name for path in folder.iterdir()} - {LOCK, OWNER}
    return {name for name in names if not UNFINISHED.fullmatch(name)}


def _foreign(folder: Path) -> list[str]:
    """Returns the files in a stage's folder that this program did not write."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if not _is_ours(path.relative_to(folder).parts, is_folder=path.is_dir())
    ]


def _is_ours(parts: tuple[str, ...], *, is_folder: bool) -> bool:
    *parents, name = parts
    if not all(STAGE_SUBFOLDERS.fullmatch(parent) for parent in parents):
        return False
    if is_folder:
        return STAGE_SUBFOLDERS.fullmatch(name) is not None
    stored = parents[-1:] in ([STORE], [MEASURED])
    return stored or name in STAGE_FILES or UNFINISHED.fullmatch(name) is not None


def _remove(folder: Path) -> None:
    """Removes a stage's folder, except for foreign files in it."""
    if not folder.is_dir():
        return
    foreign = set(_foreign(folder))
    signs = [folder / DESCRIPTION, folder / WORK_FILE]  # last: they mark the folder as ours
    inside = sorted(folder.rglob("*"), reverse=True)  # content before its folder
    for path in [*(path for path in inside if path not in signs), *signs, folder]:
        if str(path.relative_to(folder)) in foreign:
            continue
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
