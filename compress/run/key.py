"""Stage keys: a hash of everything that determines a stage's result; differences between runs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress import distributed
from compress.architectures.code_digest import code_digest
from compress.architectures.sources import TIMM, import_timm, user_code
from compress.checkpoint import Checkpoint, Step, load_checkpoint
from compress.data.dataset import Data
from compress.errors import CheckpointError
from compress.files import file_digest
from compress.host import library_versions
from compress.kd.teachers import Teacher
from compress.measure.config import MeasureConfig
from compress.run.recipe import ModelCard
from compress.run.stages import STAGES
from compress.settings import settings_of


@dataclass(frozen=True, kw_only=True)
class Request:
    """One stage to run."""

    stage: str
    config: Any
    folder: Path
    """Its checkpoint's folder."""
    run: Path | None
    """The run's folder; None outside a run."""
    card: ModelCard | None
    """Needed by the stages that build a network."""
    parent: Checkpoint | None
    teachers: tuple[Teacher, ...]
    """The first is also the report's baseline. The teacher stage uses the first given one
    unchanged."""
    data: Data
    measure: MeasureConfig
    seed: int
    again: bool = False
    """Run even if it is finished."""
    measured_since: str = ""
    """Ignore cached measurements older than this; UTC, ISO 8601."""


def stage_key(request: Request) -> str:
    """Returns the hash of everything that determines a stage's result."""
    facts = {
        "stage": request.stage,
        "config": dataclasses.asdict(request.config),
        "networks": _networks(request),
        "parent": request.parent.digest if request.parent else None,
        "teachers": [(teacher.digest, teacher.weight) for teacher in request.teachers],
        "data": request.data.fingerprint,
        "seed": request.seed,
        "code": _code(request.stage),
        "environment": _environment(request),
        "measure": _measure(request),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def lineage_of(request: Request) -> tuple[Step, ...]:
    """Returns the steps that led to a stage's start; empty for a new teacher."""
    if request.parent is not None:
        return request.parent.description.lineage
    given = request.teachers[0].checkpoint if request.teachers else None
    return given.description.lineage if given is not None else ()


def split_warnings(request: Request) -> list[str]:
    """Names the teachers that may have been trained on this run's validation images.

    Those images decide what is pruned, what is int8, and which file ships; a network that has seen
    them scores too high.
    """
    data, warnings = request.data, []
    for teacher in request.teachers:
        if teacher.path.parent == request.run:
            continue  # reported when it was copied
        steps = teacher.checkpoint.description.lineage if teacher.checkpoint is not None else ()
        others = [step for step in steps if step.split_fingerprint != data.split_fingerprint]
        if teacher.checkpoint is None:
            warnings.append(
                f"{teacher.path} does not record its training images; it may have seen this run's "
                "validation images, which decide what is pruned, quantized, and shipped"
            )
        elif others:
            step = others[-1]
            warnings.append(
                f"{teacher.path} was trained on another split ({step.data}, seed {step.seed}, "
                f"validation = {step.data_config.get('validation')}): it may have seen this run's "
                "validation images, which decide what is pruned, quantized, and shipped"
            )
    return warnings


def new_step(request: Request, key: str) -> Step:
    """Returns a request's step in the lineage."""
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
        split_fingerprint=request.data.split_fingerprint,
        measure=_measure(request),
        environment=_environment(request),
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
    """Describes how a stage's old checkpoint differs from the requested one."""
    if request.again:
        return "earlier"
    try:
        old = load_checkpoint(folder).description.step
    except CheckpointError:
        return "earlier and damaged since"
    new = new_step(request, "")
    pairs = (
        ("", _flat(old.config), _flat(new.config)),
        ("data.", _flat(old.data_config), _flat(new.data_config)),
        ("measure.", old.measure, new.measure),
        ("network.", _flat(_network(old.card, request)), _flat(_network(new.card, request))),
        ("", old.environment, new.environment),
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
    return (
        "from a different input" if old.parent != new.parent else "with different networks or code"
    )


def _flat(config: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in (config or {}).items():
        below = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if below else {f"{prefix}{name}": value}
    return flat


def _measure(request: Request) -> dict[str, int]:
    return dataclasses.asdict(request.measure) if STAGES[request.stage].timed else {}


def _code(stage: str) -> str:
    """Returns the digest of the code that a stage imports."""
    return code_digest(STAGES[stage].module, Path(__file__).parents[2])


def _environment(request: Request) -> dict[str, str]:
    """Returns what else affects a stage's results, down to the last bit."""
    card = request.card
    networks = [request.parent.spec.architecture] if request.parent else []
    networks += [card.teacher.architecture, card.student.architecture] if card else []
    uses_timm = any(name.startswith(TIMM) for name in networks)
    return {
        **library_versions(),
        **({"timm": import_timm().__version__} if uses_timm else {}),
        "threads": str(torch.get_num_threads()),
        "device": distributed.device().type,
        "processes": str(distributed.all_processes()),
    }


def _network(card: Mapping[str, Any] | None, request: Request) -> Any:
    """Returns the card's entry for the network that a stage builds; None if it builds none."""
    taken = request.stage == "teacher" and request.teachers
    role = STAGES[request.stage].makes
    return None if card is None or taken or role is None else card.get(role)


def _networks(request: Request) -> Any:
    """Returns what determines the network that a stage builds; None if it builds none."""
    network = _network(dataclasses.asdict(request.card) if request.card else None, request)
    if network is None:
        return None
    weights = Path(network["weights"])
    content = file_digest(weights) if weights.is_file() else None
    return {**network, "weights_content": content, "code": user_code(network["architecture"])}
