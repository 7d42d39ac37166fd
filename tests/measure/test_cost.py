import pytest

from compress.architectures.build import build
from compress.measure.cost import count_macs, count_parameters


def test_resnet18_costs_what_its_paper_says() -> None:
    from compress.architectures.spec import ModelSpec
    from compress.data.preprocess import Preprocess

    spec = ModelSpec(
        architecture="resnet18",
        stem="large",
        class_names=tuple(map(str, range(1000))),
        preprocess=Preprocess(size=224, resize=256, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3),
    )
    model = build(spec)
    assert count_parameters(model) == 11_689_512  # torchvision's documented number
    assert count_macs(model, spec) == pytest.approx(1.814e9, rel=1e-3)
