"""Model cards (models/*.toml) and recipes (pipelines/*.toml): read, typed and validated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from compress.architectures.spec import WEIGHT_FILES, Activation, Stem
from compress.checkpoint import STAGES, FileName
from compress.data.config import DataConfig
from compress.distill.config import DistillConfig
from compress.errors import CompressError
from compress.export.config import ExportConfig
from compress.files import parse_toml, read_text
from compress.measure.config import MeasureConfig
from compress.prune.config import PruneConfig
from compress.quantize.config import QuantizeConfig
from compress.settings import nearest, parse, settings_of, shown
from compress.teacher.config import TeacherConfig

MAX_SEED = 2**63 - 1
"""Torch takes no larger one."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of a card's two networks."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    stem: Literal["auto", Stem] = "auto"
    """`auto`: small for images under 64 px."""
    activation: Activation = "own"
    """`relu`: in place of HardSwish, SiLU and GELU, which cost time on integers."""
    weights: FileName = ""
    """To start from: a weights name of torchvision, or a .safetensors or .pth file, by its path
    from the card's folder. Only the teacher's are used."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Which network is the teacher, which the student."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    teacher: Network
    student: Network
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which stages run, in which order, with which settings."""

    description: str = ""
    stages: tuple[str, ...] = STAGES
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    data: DataConfig = field(default=DataConfig())
    measure: MeasureConfig = field(default=MeasureConfig())
    teacher: TeacherConfig = field(default=TeacherConfig())
    distill: DistillConfig = field(default=DistillConfig())
    prune: PruneConfig = field(default=PruneConfig())
    quantize: QuantizeConfig = field(default=QuantizeConfig())
    export: ExportConfig = field(default=ExportConfig())


NAMED_PROBLEMS = 8
"""Of a card, in a message."""
SECTIONS = ("data", "measure", *STAGES)


def card_names() -> list[str]:
    """Returns the names of the model cards that come with the program."""
    return _names(files("compress.models"))


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the program."""
    return _names(files("compress.pipelines"))


def load_card(name: str) -> ModelCard:
    """Reads a model card by name, or from a .toml file by path.

    Raises:
        CompressError: there is no such card, or something in it is wrong.
    """
    card = parse_card(_read(name, files("compress.models"), "model"), name)
    if card.teacher.weights.endswith(WEIGHT_FILES):  # a path beside the card
        weights = str(Path(name).parent.resolve() / card.teacher.weights)
        if not Path(weights).is_file():
            raise CompressError(f"model {name}: there is no weights file {weights}")
        card = dataclasses.replace(card, teacher=dataclasses.replace(card.teacher, weights=weights))
    return card


def parse_card(raw: Mapping[str, Any], name: str) -> ModelCard:
    """Returns what a card's TOML says, or a checkpoint's copy of it.

    Args:
        raw: the content.
        name: of the card, for messages.

    Raises:
        CompressError: something in it is wrong.
    """
    try:
        return TypeAdapter(ModelCard).validate_python(raw)
    except ValidationError as error:
        problems = [_card_problem(problem) for problem in error.errors()[:NAMED_PROBLEMS]]
        raise CompressError(f"model {name}: {'; '.join(problems)}") from None


def _card_problem(problem: ErrorDetails) -> str:
    """Returns what is wrong in a card, in words."""
    *section, key = (str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        kind = Network if section else ModelCard
        known = nearest(key, [field.name for field in dataclasses.fields(kind)])
        return f"there is no {'.'.join((*section, key))!r}; {known}"
    return f"{'.'.join((*section, key))}: {problem['msg']}"


def check_stages(recipe: Recipe, first: str | None, last: str | None) -> None:
    """Raises CompressError unless the stages to begin and end with are the recipe's, in order."""
    for stage in (first, last):
        if stage is not None and stage not in recipe.stages:
            raise CompressError(
                f"the recipe has no stage {stage!r}; its stages: {', '.join(recipe.stages)}"
            )
    if first and last and recipe.stages.index(first) > recipe.stages.index(last):
        raise CompressError(f"--from {first} comes after --until {last}")


def load_recipe(name: str, overrides: Iterable[str] = (), *, seed: int | None = None) -> Recipe:
    """Reads a recipe by name, or from a .toml file by path.

    Args:
        name: of the recipe.
        overrides: `section.key=value`, applied on top.
        seed: instead of the recipe's.

    Raises:
        CompressError: there is no such recipe, or a setting is unknown or out of range.
    """
    raw = _read(name, files("compress.pipelines"), "recipe")
    unknown = set(raw) - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        bad = sorted(unknown)[0]
        raise CompressError(f"recipe {name} has no section {bad!r}; {nearest(bad, SECTIONS)}")
    stages = raw.get("stages", list(STAGES))
    known = isinstance(stages, list) and stages == [stage for stage in STAGES if stage in stages]
    if not known or "teacher" not in stages:
        raise CompressError(
            f"recipe {name}: stages must be some of {', '.join(STAGES)}, in this order and with "
            f"teacher, got {shown(stages)}"
        )
    for section in SECTIONS:
        if not isinstance(given := raw.get(section, {}), Mapping):
            raise CompressError(
                f"recipe {name}: {section} is a table of settings, got {shown(given)}"
            )
    sections = {
        section: parse(getattr(Recipe, section), raw.get(section, {}), section=section)
        for section in SECTIONS
    }
    head = {key: value for key, value in raw.items() if key not in SECTIONS}
    if seed is not None:
        head["seed"] = seed
    try:
        recipe = TypeAdapter(Recipe).validate_python({**head, **sections, "stages": stages})
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise CompressError(
            f"recipe {name}: {key}: {problem['msg']}, got {shown(problem['input'])}"
        ) from None
    for override in overrides:
        recipe = _override(recipe, override)
    return recipe


def recipe_settings(recipe: Recipe) -> list[tuple[str, str]]:
    """Returns every setting as `--set` takes it, with the recipe's value, and its explanation."""
    return [
        (
            f"{section}.{setting.name}={setting.default}",
            f"{setting.help}  [{setting.allowed}]",
        )
        for section in SECTIONS
        for setting in settings_of(getattr(recipe, section))
    ]


def _override(recipe: Recipe, override: str) -> Recipe:
    dotted, equals, value = override.partition("=")
    section, *path = dotted.strip().split(".")
    if not equals or not path:
        raise CompressError(f"--set takes section.key=value, got {override!r}")
    if section not in SECTIONS:
        raise CompressError(f"--set: no section {section!r}; {nearest(section, SECTIONS)}")
    if section in STAGES and section not in recipe.stages:
        raise CompressError(
            f"--set {override}: the recipe has no stage {section!r}; its stages: "
            f"{', '.join(recipe.stages)}"
        )
    given: Any = value.strip()
    for part in reversed(path):
        given = {part: given}
    parsed = parse(getattr(recipe, section), given, section=section)
    return dataclasses.replace(recipe, **{section: parsed})


def _names(folder: Traversable) -> list[str]:
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def _read(name: str, folder: Traversable, kind: str) -> Mapping[str, Any]:
    source: Traversable = folder / f"{name}.toml"
    if name.endswith(".toml"):
        source = Path(name)
        if not source.is_file():
            raise CompressError(
                f"there is no file {name}; a {kind} that comes with the program is named without "
                ".toml"
            )
    if not source.is_file():
        raise CompressError(f"unknown {kind} {name!r}; {nearest(name, _names(folder))}")
    try:
        bundled = not name.endswith(".toml")
        return parse_toml(source.read_text(encoding="utf-8") if bundled else read_text(Path(name)))
    except CompressError as error:
        raise CompressError(f"{kind} {name}: {error}") from None
