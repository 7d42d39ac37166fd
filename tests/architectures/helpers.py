"""Specs of small networks."""

import dataclasses

from compress.architectures.spec import ModelSpec
from compress.data.preprocess import Preprocess


def spec_32(name: str, **changes: object) -> ModelSpec:
    preprocess = Preprocess(size=32, resize=32, channels=1, mean=(0.5,), std=(0.25,))
    spec = ModelSpec(
        architecture=name, stem="small", class_names=("a", "b", "c"), preprocess=preprocess
    )
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
