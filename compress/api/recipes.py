"""Whole recipes, as `compress run` runs them."""

from collections.abc import Sequence
from pathlib import Path

from compress.data.dataset import Data
from compress.measure.results import RunReport
from compress.run.recipe import load_card, load_recipe
from compress.run.runner import run_card
from compress.run.stages import DEFAULT_PIPELINE


def run(
    model: str,
    data: str | Data,
    *,
    out: str | Path,
    pipeline: str = DEFAULT_PIPELINE,
    overrides: Sequence[str] = (),
    seed: int | None = None,
) -> RunReport:
    """Runs all stages of a recipe; finished stages in `out` are reused.

    Args:
        model: name or file of a model card.
        data: a dataset's name, as `--data` takes it, or the dataset.
        out: the run's folder.
        pipeline: name or file of a recipe.
        overrides: settings to replace, as `section.key=value`.
        seed: random seed; None: the recipe's.

    Raises:
        CompressError: see `compress.run.runner.run_recipe`.
    """
    card = load_card(model)
    recipe = load_recipe(pipeline, overrides, seed=seed, card=card)
    return run_card(card, recipe, data, Path(out), names=(model, pipeline))
