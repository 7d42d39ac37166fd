import dataclasses

import pytest

from compress.errors import CompressError
from tests.architectures.helpers import spec_32


def test_a_classifier_needs_two_classes() -> None:
    spec = spec_32("resnet18")
    assert (spec.activation, spec.code, dict(spec.arguments)) == ("own", "", {})
    with pytest.raises(CompressError, match=r"needs two or more classes, got \('a',\)"):
        dataclasses.replace(spec, class_names=("a",))
