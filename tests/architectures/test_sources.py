import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from compress.architectures.build import build
from compress.architectures.sources import give_network
from compress.architectures.weights import load_weights
from compress.cli.main import main
from compress.trust import _TRUSTED
from tests.architectures.helpers import spec_32


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:mobilenetv3_small_050"])
def test_timms_models_fit_classes_and_channels(name: str) -> None:
    spec = spec_32(name)
    assert build(spec)(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ValueError, match="timm has no model 'resnet10'; did you mean"):
        build(spec_32("timm:resnet10"))
    with pytest.raises(ValueError, match="weights must be 'pretrained' or a file, got 'best'"):
        load_weights(build(spec).network, name, "best")


OWN_CODE = """
from torch import nn


def tiny(num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def nothing(num_classes):
    return None


def seven(num_classes):
    return tiny(7)


def dense(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, num_classes))


def broken(num_classes):
    raise RuntimeError("boom")
"""


def test_code_of_ones_own_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_networks.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(ValueError, match="imported only with --trust"):
        build(spec_32("our_networks:tiny"))
    card = tmp_path / "card.toml"
    card.write_text(
        '[teacher]\narchitecture = "our_networks:tiny"\narguments = { width = 32 }\n'
        '[student]\narchitecture = "our_networks:tiny"\n'
    )
    command = ["run", "card.toml", "--data", "digits", "--pipeline", "smoke", "--until", "distill"]
    command += ["--set", "measure.rounds=5"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert "is external code" in refused.output
    trusted = CliRunner().invoke(main, [*command, "--trust"])
    assert trusted.exit_code == 0, trusted.output
    later = ["prune", "--latency-ratio", "1", "--macs-ratio", "1"]
    assert "only with --trust" in CliRunner().invoke(main, later).output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:tiny", "cannot import the network 'no_such_module:tiny'"),
        ("json:tiny", "cannot import the network 'json:tiny'"),
        ("json:dumps", r"does not accept the arguments it is called with \(num_classes\)"),
    ],
)
def test_wrong_code_is_explained(name: str, message: str) -> None:
    token = _TRUSTED.set(True)
    try:
        with pytest.raises(ValueError, match=message):
            build(spec_32(name))
    finally:
        _TRUSTED.reset(token)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "our_own:seven",
            r"returns a Tensor of shape \(1, 7\) .* must return a tensor of shape \(1, 3\)",
        ),
        (
            "our_own:broken",
            "'our_own:broken' cannot be built, RuntimeError: boom; `compress --debug",
        ),
        ("our_own:nothing", "must return a torch.nn.Module"),
        ("our_typo:tiny", "'our_typo:tiny' cannot be built, SyntaxError"),
    ],
)
def test_faults_in_code_of_ones_own_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "our_own.py").write_text(OWN_CODE.replace("Conv2d(3,", "Conv2d(1,"))
    (tmp_path / "our_typo.py").write_text("def tiny(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    token = _TRUSTED.set(True)
    try:
        with pytest.raises(ValueError, match=message):
            build(spec_32(name))
        assert build(spec_32("our_own:dense"))(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    finally:
        _TRUSTED.reset(token)
        for module in ("our_own", "our_typo"):
            sys.modules.pop(module, None)


def test_a_network_object_is_named_by_code_structure_and_weights(tmp_path: Path) -> None:
    """A finished stage is found by this name, so nothing that changes logits may be missing."""

    def named(code: str, module: str) -> str:
        (tmp_path / f"{module}.py").write_text(code)
        spec = importlib.util.spec_from_file_location(module, tmp_path / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        imported = importlib.util.module_from_spec(spec)
        sys.modules[module] = imported
        spec.loader.exec_module(imported)
        torch.manual_seed(0)
        return give_network(imported.Net())

    code = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x)
"""
    names = {named(code, f"net_{number}") for number in range(2)}
    assert len(names) == 1
    assert named(code.replace("self.fc(x)", "self.fc(-x)"), "net_2") not in names
    assert named(code.replace("4, 2", "5, 2"), "net_3") not in names
