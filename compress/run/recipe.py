"""Reads and validates model cards (models/*.toml) and recipes (pipelines/*.toml)."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from compress.architectures.spec import WEIGHT_FILES, Activation, Stem
from compress.data.config import DataConfig
from compress.errors import CompressError
from compress.files import parse_toml, read_text
from compress.insights.config import InsightsConfig
from compress.measure.config import MeasureConfig
from compress.run.stages import STAGES
from compress.settings import FileName, nearest, parse, settings_of, shown
from compress.teacher.config import FINETUNE

MAX_SEED = 2**63 - 1
"""Largest seed that torch accepts."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of a card's two networks."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    stem: Literal["auto", Stem] = "auto"
    """`auto`: small for images under 64 px."""
    activation: Activation = "own"
    """`relu` replaces HardSwish, SiLU, and GELU, which are slow in int8."""
    weights: FileName = ""
    """Initial weights: a torchvision weights name, or a .safetensors or .pth file, relative to the
    card. Used for the teacher only."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Overrides of what the teacher's weights say about images in folders: `size`, `crop_pct`,
    `interpolation`, `mean`, `std`."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The teacher and the student."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    teacher: Network
    student: Network
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A built-in model card or recipe."""

    name: str
    description: str


@dataclass(frozen=True, kw_only=True)
class RecipeSetting:
    """A setting of a recipe."""

    name: str
    """As `--set` takes it: `section.key`."""
    value: bool | int | float | str
    allowed: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages to run, with their settings."""

    description: str = ""
    stages: tuple[str, ...] = tuple(STAGES)
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    data: DataConfig = field(default=DataConfig())
    measure: MeasureConfig = field(default=MeasureConfig())
    insights: InsightsConfig = field(default=InsightsConfig())
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The config of each stage."""


NAMED_PROBLEMS = 8
"""Maximum number of a card's problems in one message."""
DEFAULTS = {
    "data": DataConfig(),
    "measure": MeasureConfig(),
    "insights": InsightsConfig(),
    **{name: stage.config for name, stage in STAGES.items()},
}
"""The sections of a recipe with their default settings."""
COMMON = ("data", "measure", "insights")
"""Sections that are not a stage's."""
HEAD = ("description", "stages", "seed")


def sections_of(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe's settings by section."""
    common = {name: getattr(recipe, name) for name in COMMON}
    return {**common, **recipe.settings}


def list_cards() -> tuple[Listed, ...]:
    """Returns the built-in model cards."""
    return tuple(
        Listed(name=name, description=load_card(name).description) for name in card_names()
    )


def list_recipes() -> tuple[Listed, ...]:
    """Returns the built-in recipes."""
    return tuple(
        Listed(name=name, description=load_recipe(name).description) for name in recipe_names()
    )


def card_names() -> list[str]:
    """Returns the names of the built-in model cards."""
    return _names(files("compress.models"))


def recipe_names() -> list[str]:
    """Returns the names of the built-in recipes."""
    return _names(files("compress.pipelines"))


def load_card(name: str) -> ModelCard:
    """Reads a model card by name, or from a .toml file by path.

    Raises:
        CompressError: there is no such card, or it is invalid.
    """
    card = parse_card(_read(name, files("compress.models"), "model"), name)
    if card.teacher.weights.endswith(WEIGHT_FILES):  # a path relative to the card
        weights = str(Path(name).parent.resolve() / card.teacher.weights)
        if not Path(weights).is_file():
            raise CompressError(f"model {name}: there is no weights file {weights}")
        card = dataclasses.replace(card, teacher=dataclasses.replace(card.teacher, weights=weights))
    return card


def parse_card(raw: Mapping[str, Any], name: str) -> ModelCard:
    """Validates the content of a card, from TOML or from a checkpoint.

    Raises:
        CompressError: it is invalid.
    """
    try:
        return TypeAdapter(ModelCard).validate_python(raw)
    except ValidationError as error:
        problems = [_card_problem(problem) for problem in error.errors()[:NAMED_PROBLEMS]]
        raise CompressError(f"model {name}: {'; '.join(problems)}") from None


def _card_problem(problem: ErrorDetails) -> str:
    """Describes a problem of a card."""
    *section, key = (str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        kind = Network if section else ModelCard
        known = nearest(key, [field.name for field in dataclasses.fields(kind)])
        return f"there is no {'.'.join((*section, key))!r}; {known}"
    return f"{'.'.join((*section, key))}: {problem['msg']}"


def check_stages(recipe: Recipe, first: str | None, last: str | None) -> None:
    """Raises CompressError unless `first` and `last` are stages of the recipe, in order."""
    for stage in (first, last):
        if stage is not None and stage not in recipe.stages:
            raise CompressError(
                f"the recipe has no stage {stage!r}; its stages: {', '.join(recipe.stages)}"
            )
    if first and last and recipe.stages.index(first) > recipe.stages.index(last):
        raise CompressError(f"--from {first} comes after --until {last}")


def load_recipe(
    name: str,
    overrides: Iterable[str] = (),
    *,
    seed: int | None = None,
    card: ModelCard | None = None,
) -> Recipe:
    """Reads a recipe by name, or from a .toml file by path.

    Args:
        name: name or path of the recipe.
        overrides: settings to replace, as `section.key=value`.
        seed: random seed; None: the recipe's.
        card: if it names weights, the teacher's defaults are for fine-tuning.

    Raises:
        CompressError: there is no such recipe, or a setting is unknown or out of range.
    """
    raw = _read(name, files("compress.pipelines"), "recipe")
    if unknown := sorted(set(raw) - {*HEAD, *DEFAULTS}):
        raise CompressError(
            f"recipe {name} has no section {unknown[0]!r}; {nearest(unknown[0], DEFAULTS)}"
        )
    stages = _check_order(raw.get("stages", list(STAGES)), name)
    sections = {}
    pretrained = card is not None and card.teacher.weights
    defaults = DEFAULTS | {"teacher": FINETUNE} if pretrained else DEFAULTS
    for section, default in defaults.items():
        if not isinstance(given := raw.get(section, {}), Mapping):
            raise CompressError(
                f"recipe {name}: {section} must be a table of settings, got {shown(given)}"
            )
        sections[section] = parse(default, given, section=section)
    for override in overrides:
        section, parsed = _override(sections, stages, override)
        sections[section] = parsed
    head = {key: value for key, value in raw.items() if key in HEAD}
    if seed is not None:
        head["seed"] = seed
    common = {name: sections.pop(name) for name in COMMON}
    try:
        return TypeAdapter(Recipe).validate_python(
            {**head, "stages": stages, **common, "settings": sections}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise CompressError(
            f"recipe {name}: {key}: {problem['msg']}, got {shown(problem['input'])}"
        ) from None


def recipe_settings(recipe: Recipe) -> tuple[RecipeSetting, ...]:
    """Returns every setting with the recipe's value."""
    return tuple(
        RecipeSetting(
            name=f"{section}.{setting.name}",
            value=setting.default,
            allowed=setting.allowed,
            help=setting.help,
        )
        for section, config in sections_of(recipe).items()
        for setting in settings_of(config)
    )


def _check_order(stages: Any, name: str) -> list[str]:
    """Returns a recipe's stages.

    Raises:
        CompressError: they are not stages, or not in order, or the first one is missing.
    """
    first = next(iter(STAGES))
    in_order = isinstance(stages, list) and stages == [one for one in STAGES if one in stages]
    if not in_order or first not in stages:
        raise CompressError(
            f"recipe {name}: stages must be some of {', '.join(STAGES)}, in this order and "
            f"including {first}, got {shown(stages)}"
        )
    return list(stages)


def _override(sections: Mapping[str, Any], stages: Sequence[str], override: str) -> tuple[str, Any]:
    """Returns the section that `section.key=value` names, and its settings with it."""
    dotted, equals, value = override.partition("=")
    section, *path = dotted.strip().split(".")
    if not equals or not path:
        raise CompressError(f"--set must be SECTION.KEY=VALUE, got {override!r}")
    if section not in sections:
        raise CompressError(f"--set: no section {section!r}; {nearest(section, sections)}")
    if section in STAGES and section not in stages:
        raise CompressError(
            f"--set {override}: the recipe has no stage {section!r}; its stages: "
            f"{', '.join(stages)}"
        )
    given: Any = value.strip()
    for part in reversed(path):
        given = {part: given}
    return section, parse(sections[section], given, section=section)


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
                f"there is no file {name}; built-in {kind}s are named without .toml"
            )
    if not source.is_file():
        raise CompressError(f"unknown {kind} {name!r}; {nearest(name, _names(folder))}")
    try:
        bundled = not name.endswith(".toml")
        return parse_toml(source.read_text(encoding="utf-8") if bundled else read_text(Path(name)))
    except CompressError as error:
        raise CompressError(f"{kind} {name}: {error}") from None
