"""From a card's networks to their specs and inputs."""

from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from compress.architectures.build import SMALL_IMAGE
from compress.architectures.sources import user_code
from compress.architectures.spec import ModelSpec
from compress.architectures.weights import weights_inputs
from compress.data.dataset import Data
from compress.data.preprocess import Inputs
from compress.errors import CompressError
from compress.run.recipe import ModelCard, Network


def card_inputs(card: ModelCard) -> Inputs:
    """Returns how the card's teacher wants its images: as its weights, unless the card overrides.

    Raises:
        CompressError: the weights are unknown, or an override is wrong.
    """
    described = weights_inputs(card.teacher.architecture, card.teacher.weights)
    try:
        return TypeAdapter(Inputs).validate_python(asdict(described) | card.teacher.inputs)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, ("teacher", "inputs", *problem["loc"])))
        raise CompressError(f"{name}: {problem['msg']}") from None


def model_spec(network: Network, data: Data) -> ModelSpec:
    """Returns the spec of a card's network for a dataset."""
    stem = network.stem
    if stem == "auto":
        stem = "small" if data.preprocess.size < SMALL_IMAGE else "large"
    return ModelSpec(
        architecture=network.architecture,
        arguments=network.arguments,
        stem=stem,
        activation=network.activation,
        code=user_code(network.architecture),
        class_names=data.class_names,
        preprocess=data.preprocess,
    )
