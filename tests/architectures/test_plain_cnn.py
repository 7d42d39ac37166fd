import dataclasses

import pytest

from compress.architectures.build import build
from compress.data.preprocess import Preprocess
from tests.architectures.helpers import spec_32

GREY_64 = Preprocess(size=64, resize=64, channels=1, mean=(0.5,), std=(0.25,))


def test_the_tutorials_networks_have_their_layers() -> None:
    shapes = {
        name: [tuple(parameter.shape) for parameter in build(spec_32(name)).parameters()][::2]
        for name in ("simple_cnn", "complex_cnn")
    }
    assert shapes["simple_cnn"] == [(64, 1, 3, 3), (64, 64, 3, 3), (256, 4096), (3, 256)]
    assert [shape[0] for shape in shapes["complex_cnn"]] == [64, 64, 128, 256, 512, 3]
    with pytest.raises(ValueError, match="with 2 convolutions, each halving the side"):
        tiny = dataclasses.replace(GREY_64, size=2, resize=2)
        build(spec_32("simple_cnn", preprocess=tiny))
