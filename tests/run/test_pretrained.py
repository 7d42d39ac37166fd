"""Cards with pretrained weights: what their networks see, and how they are trained."""

from dataclasses import replace
from typing import Any

import pytest

from compress.errors import CompressError
from compress.run.networks import card_inputs
from compress.run.recipe import ModelCard, Network, load_recipe
from compress.teacher.config import FINETUNE, TeacherConfig


def card(**teacher: Any) -> ModelCard:
    network = Network(architecture="resnet50", weights="IMAGENET1K_V2", **teacher)
    return ModelCard(teacher=network, student=Network(architecture="resnet18"))


def test_a_card_overrides_what_its_weights_say_about_images() -> None:
    assert card_inputs(card()).preprocess(0).resize == 232
    inputs = card_inputs(card(inputs={"size": 160, "mean": [0.5, 0.5, 0.5]}))
    assert (inputs.size, inputs.mean, inputs.std[0]) == (160, (0.5, 0.5, 0.5), 0.229)
    assert inputs.preprocess(0).resize == round(160 * 232 / 224)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sice": 160}, "teacher.inputs.sice: Unexpected keyword"),
        ({"crop_pct": 2}, "teacher.inputs.crop_pct: Input should be less than or equal to 1"),
        ({"interpolation": "box"}, "teacher.inputs.interpolation: Input should be 'bilinear' or"),
    ],
)
def test_a_wrong_override_is_explained(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        card_inputs(card(inputs=wrong))


def test_pretrained_weights_are_fine_tuned_by_default() -> None:
    assert load_recipe("default", card=card()).settings["teacher"] == FINETUNE
    recipe = load_recipe("default", ["teacher.train.epochs=0"], card=card())
    assert recipe.settings["teacher"].train == replace(FINETUNE.train, epochs=0)
    assert load_recipe("default").settings["teacher"] == TeacherConfig()
