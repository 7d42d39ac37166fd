from pathlib import Path

import pytest

from compress.recipe import Recipe, card_names, load_card, load_recipe, recipe_names


@pytest.mark.parametrize("name", card_names())
def test_each_card_reads(name: str) -> None:
    assert load_card(name).description


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_reads(name: str) -> None:
    assert load_recipe(name).description


def test_overrides_lie_on_top_of_the_recipe() -> None:
    recipe = load_recipe("default", ["prune.macs_ratio=0.25", "prune.train.epochs=1"])
    assert recipe.prune.macs_ratio == 0.25
    assert recipe.prune.train.epochs == 1
    assert recipe.prune.train.lr == Recipe.prune.train.lr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune.macs_ratio=2", "prune.macs_ratio must be a number in (0, 1], got '2'"),
        ("prine.ratio=0.5", "--set: no section 'prine'; did you mean prune?"),
        ("prune.stpes=3", "prune has no setting 'stpes'; did you mean steps?"),
        (
            "distill.train.mixup=0.2",
            "distill the teacher's stored answers (views > 0) are not to pictures that mixup "
            "blends; set guidance.views = 0 to ask the teacher at every step",
        ),
        ("prune.steps", "--set takes section.key=value, got 'prune.steps'"),
    ],
)
def test_a_wrong_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        load_recipe("default", [override])
    assert str(caught.value) == message


def test_a_recipe_of_ones_own_is_read_by_path(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('description = "mine"\nstages = ["teacher", "export"]\n[data]\nsize = 64\n')
    recipe = load_recipe(str(own))
    assert (recipe.stages, recipe.data.size) == (("teacher", "export"), 64)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('stages = ["prune", "teacher"]', "in this order"),
        ('stages = ["distill"]', "with teacher"),
        ("[purne]\nratio = 0.5", "did you mean prune?"),
        ("stages = [", "own.toml"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path: Path, text: str, part: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(ValueError, match=".") as caught:
        load_recipe(str(own))
    assert part in str(caught.value)


def test_a_wrong_card_is_explained(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('description = "mine"\n[teacher]\narchitecure = "resnet18"\n')
    with pytest.raises(ValueError, match="teacher"):
        load_card(str(own))


def test_an_unknown_card_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown model 'resnet19'; did you mean resnet18"):
        load_card("resnet19")
