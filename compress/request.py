"""What decides a stage's result: its request, the key made of it, and what differs from before."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.checkpoint import (
    Checkpoint,
    Step,
    file_digest,
    load_checkpoint,
)
from compress.data.load import Data
from compress.distill.teachers import Teacher
from compress.errors import CheckpointError
from compress.measure.config import MeasureConfig
from compress.measure.host import library_versions
from compress.recipe import ModelCard
from compress.settings import settings_of

SOURCES = {
    "teacher": ("teacher.py", "train", "architectures"),
    "distill": ("distill", "train", "architectures"),
    "prune": ("prune", "quantize", "distill", "train"),  # int8 files are timed
    "quantize": ("quantize", "distill", "train"),
    "export": ("export", "quantize"),  # quantised modules write their own operators
}
"""Code that decides a stage's result: when it changes, the stage runs again."""

TIMED = ("prune", "quantize", "export")
"""Stages whose result is decided by latency; in the others it is only reported."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One stage to run."""

    stage: str
    config: Any
    folder: Path
    """Where its checkpoint shall be."""
    card: ModelCard | None
    """Names the networks; only teacher and distill need it."""
    parent: Checkpoint | None
    teachers: tuple[Teacher, ...]
    """Who is learned from; the first is what the result is compared with. For the stage teacher:
    given ones, of which it takes the first as it is."""
    data: Data
    measure: MeasureConfig
    seed: int
    again: bool = False
    """Run even if it was done before."""


def stage_key(request: Request) -> str:
    """Hash of all that decides a stage's result."""
    facts = {
        "stage": request.stage,
        "config": dataclasses.asdict(request.config),
        "networks": _networks(request),
        "parent": request.parent.digest if request.parent else None,
        "teachers": [(teacher.digest, teacher.weight) for teacher in request.teachers],
        "data": request.data.fingerprint,
        "seed": request.seed,
        "code": _code_digest(request.stage),
        "measure": _measure(request),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def lineage_of(parent: Checkpoint | None) -> tuple[Step, ...]:
    """Returns the steps that led to a checkpoint; none before the teacher."""
    return parent.description.lineage if parent else ()


def new_step(request: Request, key: str) -> Step:
    """Returns what a request adds to the lineage."""
    return Step(
        stage=request.stage,
        key=key,
        config=dataclasses.asdict(request.config),
        card=dataclasses.asdict(request.card) if request.card else None,
        seed=request.seed,
        parent=request.parent.digest if request.parent else None,
        data=request.data.name,
        data_config=dataclasses.asdict(request.data.config),
        data_fingerprint=request.data.fingerprint,
        measure=_measure(request),
        versions=library_versions(),
    )


def changed_settings(config: Any) -> list[str]:
    """Names the settings that differ from their defaults."""
    defaults = {setting.path: setting.default for setting in settings_of(type(config)())}
    return [
        f"{setting.name} = {setting.default}"
        for setting in settings_of(config)
        if setting.default != defaults[setting.path]
    ]


def difference(folder: Path, request: Request) -> str:
    """Says in what a stage's old checkpoint differs from the one asked for."""
    if request.again:
        return "before"
    try:
        old = load_checkpoint(folder).description.lineage[-1]
    except CheckpointError:
        return "before and damaged since"
    new = new_step(request, "")
    pairs = (
        ("", _flat(old.config), _flat(new.config)),
        ("data.", _flat(old.data_config), _flat(new.data_config)),
        ("measure.", old.measure, new.measure),
        ("", {"data": old.data, "seed": old.seed}, {"data": new.data, "seed": new.seed}),
    )
    changes = [
        f"{prefix}{name} = {was.get(name)}"
        for prefix, was, now in pairs
        for name in now
        if was.get(name) != now[name]
    ]
    if changes:
        return "with " + ", ".join(changes)
    return "from another input" if old.parent != new.parent else "with other networks or code"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        below = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if below else {f"{prefix}{name}": value}
    return flat


def _measure(request: Request) -> dict[str, int]:
    return dataclasses.asdict(request.measure) if request.stage in TIMED else {}


def _code_digest(stage: str) -> str:
    package, digest = Path(__file__).parent, hashlib.sha256()
    for source in SOURCES[stage]:
        place = package / source
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _networks(request: Request) -> Any:
    """What the card says that decides this stage's result."""
    network = None
    if request.card is not None and not (request.stage == "teacher" and request.teachers):
        network = {"teacher": request.card.teacher, "distill": request.card.student}.get(
            request.stage
        )
    if network is None:
        return None
    weights = Path(network.weights)
    content = file_digest(weights) if weights.is_file() else None
    return {**dataclasses.asdict(network), "weights_content": content}
