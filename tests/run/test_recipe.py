from pathlib import Path

import pytest

from compress.prune.config import PruneConfig
from compress.run.recipe import (
    card_names,
    check_stages,
    load_card,
    load_recipe,
    recipe_names,
)


@pytest.mark.parametrize("name", card_names())
def test_each_card_reads(name: str) -> None:
    assert load_card(name).description


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_reads(name: str) -> None:
    assert load_recipe(name).description


def test_overrides_lie_on_top_of_the_recipe() -> None:
    recipe = load_recipe("default", ["prune.macs_ratio=0.25", "prune.train.epochs=1"])
    assert recipe.settings["prune"].macs_ratio == 0.25
    assert recipe.settings["prune"].train.epochs == 1
    assert recipe.settings["prune"].train.lr == PruneConfig().train.lr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune.macs_ratio=2", "prune.macs_ratio must be a number in (0, 1], got '2'"),
        ("prine.ratio=0.5", "--set: no section 'prine'; did you mean prune?"),
        ("prune.importnce=3", "prune has no setting 'importnce'; did you mean importance?"),
        (
            "distill.train.mixup=0.2",
            "distill stored teacher logits (n_views > 0) do not match images blended by mixup; set "
            "kd.n_views = 0 (--n-views 0) to run the teacher at every step",
        ),
        ("prune.iterations", "--set must be SECTION.KEY=VALUE, got 'prune.iterations'"),
        (
            "teacher.trian.epochs=3",
            "teacher has no setting 'trian.epochs'; did you mean train.epochs?",
        ),
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
        ('stages = ["distill"]', "including teacher"),
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
    own.write_text('[teacher]\narchitecure = "resnet18"\n[studnet]\narchitecture = "resnet18"\n')
    with pytest.raises(ValueError, match="own.toml") as caught:
        load_card(str(own))
    assert "there is no 'teacher.architecure'; did you mean architecture?" in str(caught.value)
    assert "there is no 'studnet'; did you mean student?" in str(caught.value)
    with pytest.raises(ValueError, match="there is no file .*/other.toml"):
        load_card(str(tmp_path / "other.toml"))


def test_settings_of_a_stage_that_the_recipe_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="no stage 'distill'; its stages: teacher, quantize"):
        load_recipe("ptq", ["distill.ablation=true"])


def test_stages_to_run_are_the_recipes_in_its_order() -> None:
    recipe = load_recipe("default")
    check_stages(recipe, "distill", "distill")
    with pytest.raises(ValueError, match="--from prune comes after --until distill"):
        check_stages(recipe, "prune", "distill")
    with pytest.raises(ValueError, match="no stage 'prume'; its stages: teacher"):
        check_stages(recipe, "prume", None)


def test_an_unknown_card_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown model 'resnet19'; did you mean resnet18"):
        load_card("resnet19")
