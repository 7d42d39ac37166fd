"""Cards, checkpoints and weights files of anybody's: what is in them is never run."""

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn
from torchvision import models

from compress.architectures.build import build
from compress.architectures.sources import TIMM_FLOOR, torchvision_names
from compress.architectures.spec import ModelSpec
from compress.architectures.weights import load_weights
from compress.checkpoint import Product, load_checkpoint, write_checkpoint
from compress.cli.main import main
from compress.data.dataset import Data
from compress.int8.restore import load_model
from compress.teacher.result import TeacherResult
from tests.conftest import student_spec, torchvision_spec

ROOT = Path(__file__).parents[2]
BY_URL = "gcvit_xxtiny.in1k"
"""timm downloads it from a URL, and not from the Hugging Face hub."""


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


class Odd:
    """Allowed in a weights file, and a TypeError in its reader."""

    def __reduce__(self) -> tuple[object, ...]:
        return OrderedDict, (1,)


class Confusing:
    """Passes when anything is allowed; a TypeError where only tensors are."""

    def __reduce__(self) -> tuple[object, ...]:
        return OrderedDict, (), (None, {})


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where torch.hub and torchvision keep weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def planted(path: Path, marker: Path) -> Path:
    torch.save({"fc.weight": Planted(marker)}, path)
    return path


def test_the_plant_works(tmp_path: Path, marker: Path) -> None:
    torch.save([Confusing(), Planted(marker)], tmp_path / "weights.pth")
    with pytest.raises(TypeError):
        torch.load(tmp_path / "weights.pth", weights_only=True)
    assert not marker.exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert marker.is_dir()


def test_a_pickle_in_torch_hubs_folder_is_not_run(hub: Path, marker: Path, digits: Data) -> None:
    network = build(torchvision_spec("resnet18", digits)).network
    file = planted(hub / Path(models.ResNet18_Weights.IMAGENET1K_V1.url).name, marker)
    with pytest.raises(ValueError, match="remove it to download it again") as caught:
        load_weights(network, "resnet18", "IMAGENET1K_V1")
    assert str(file) in str(caught.value)
    assert not marker.exists()


def test_what_is_whole_in_torch_hubs_folder_is_taken(
    hub: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = (build(torchvision_spec("resnet18", digits)).network for _ in range(2))
    torch.save(source.state_dict(), hub / "weights.pth")
    digest = hashlib.sha256((hub / "weights.pth").read_bytes()).hexdigest()
    file = (hub / "weights.pth").rename(hub / f"resnet18-{digest[:8]}.pth")
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", f"https://nowhere.invalid/{file.name}")
    assert load_weights(target, "resnet18", "IMAGENET1K_V1") == []
    assert torch.equal(target.get_parameter("fc.weight"), source.get_parameter("fc.weight"))


def test_all_names_of_torchvisions_files_promise_a_hash() -> None:
    urls = [one.url for name in torchvision_names() for one in models.get_model_weights(name)]
    assert len(urls) > 100
    for url in urls:
        promised = torch.hub.HASH_REGEX.search(Path(url).name)
        assert promised is not None
        assert len(promised[1]) >= 8


def test_a_pickle_as_a_weights_file_is_not_run(tmp_path: Path, marker: Path, digits: Data) -> None:
    network = build(student_spec(digits)).network
    for content in (
        Planted(marker),
        Odd(),
        Confusing(),
        {"fc.weight": Odd()},
        {1: torch.zeros(1)},
        [1],
        7,
    ):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"cannot be read as weights|has no state dict"):
            load_weights(network, "scaled_resnet", str(tmp_path / "weights.pth"))
    assert not marker.exists()


def test_timms_weights_are_not_unpickled(hub: Path, marker: Path) -> None:
    """Timm itself reads what raises a TypeError once more, and runs it then."""
    source = timm.get_pretrained_cfg(BY_URL)
    assert source is not None
    assert isinstance(source.url, str)
    assert not source.hf_hub_id
    file = hub / Path(source.url).name
    torch.save({"a": Confusing(), "b": Planted(marker)}, file)
    with pytest.raises(ValueError, match="remove it to download it again"):
        load_weights(timm.create_model(BY_URL), f"timm:{BY_URL}", "pretrained")
    assert not marker.exists()


def test_pickles_from_the_hugging_face_hub_are_not_run(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = timm.get_pretrained_cfg("resnet10t")
    assert source is not None
    folder = tmp_path / f"models--{str(source.hf_hub_id).replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    network = timm.create_model("resnet10t")
    file = snapshot / "pytorch_model.bin"
    for content in (Planted(marker), {"a": Confusing(), "b": Planted(marker)}):
        torch.save(content, file)
        with pytest.raises(ValueError, match="could not be"):
            load_weights(network, "timm:resnet10t", "pretrained")
        assert not marker.exists()
    wanted = timm.create_model("resnet10t").state_dict()
    torch.save(wanted, file)
    assert load_weights(network, "timm:resnet10t", "pretrained") == []
    assert torch.equal(network.state_dict()["fc.weight"], wanted["fc.weight"])


ARGUMENTS = [
    ("resnet18", "weights", "IMAGENET1K_V1"),
    ("resnet18", "pretrained", True),
    ("resnet18", "progress", False),
    ("resnet18", "num_classes", 10),
    ("vit_b_16", "weights", "DEFAULT"),
    ("scaled_resnet", "weights", "file.pth"),
    *(
        ("timm:resnet10t", name, value)
        for name, value in (
            ("checkpoint_path", "file.pth"),
            ("pretrained", True),
            ("pretrained_cfg", ["a"]),
            ("pretrained_cfg_overlay", ["a"]),
            ("pretrained_strict", False),
            ("cache_dir", "file.pth"),
            ("scriptable", True),
            ("exportable", True),
            ("no_jit", True),
            ("features_only", True),
            ("feature_cls", "fx"),
            ("model_cls", "x"),
            ("in_chans", 3),
            ("device", "meta"),
        )
    ),
]


@pytest.mark.parametrize(("architecture", "name", "value"), ARGUMENTS)
def test_arguments_that_load_something_are_refused(
    digits: Data, architecture: str, name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=f"does not accept the argument '{name}' from a card"):
        build(torchvision_spec(architecture, digits, **{name: value}))


@pytest.mark.parametrize("value", [{"a": 1}, float("nan"), [float("inf")], [[{}]], None], ids=repr)
def test_only_plain_arguments_are_taken(digits: Data, value: object) -> None:
    for architecture in ("resnet18", "scaled_resnet", "timm:resnet10t"):
        with pytest.raises(ValueError, match="must be a number, string, boolean, or list"):
            build(torchvision_spec(architecture, digits, anything=value))


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("resnet18", {"groups": 3}),
        ("resnet18", {"norm_layer": "os.system"}),
        ("mobilenet_v2", {"round_nearest": 0}),
        ("timm:resnet10t", {"act_layer": "os.system"}),
        ("timm:resnet10t", {"zzz": 1}),
        ("timm:resnet10t.no_such_tag", {}),
    ],
)
def test_wrong_values_are_the_users_to_mend(
    digits: Data, architecture: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=r"cannot be built|does not accept"):
        build(torchvision_spec(architecture, digits, **arguments))


def test_the_networks_own_arguments_are_taken(digits: Data) -> None:
    for architecture, arguments in (
        ("resnet18", {"zero_init_residual": True}),
        ("mobilenet_v3_small", {"width_mult": 0.5}),
        ("timm:resnet10t", {"drop_rate": 0.1, "act_layer": "relu", "channels": [16, 32, 64, 64]}),
        ("simple_cnn", {"hidden": 16}),
    ):
        spec = torchvision_spec("resnet18", digits)
        images = torch.zeros(2, 1, spec.preprocess.size, spec.preprocess.size)
        logits = build(torchvision_spec(architecture, digits, **arguments))(images)
        assert logits.shape == (2, 10)


def test_a_card_runs_nothing(hub: Path, tmp_path: Path, marker: Path) -> None:
    planted(hub / Path(models.ResNet18_Weights.IMAGENET1K_V1.url).name, marker)
    pickled = planted(tmp_path / "planted.pth", marker)
    student = '[student]\narchitecture = "scaled_resnet"\n'
    for line in (
        'architecture = "resnet18"\nweights = "IMAGENET1K_V1"',
        'architecture = "resnet18"\narguments = {weights = "IMAGENET1K_V1"}',
        f'architecture = "timm:resnet10t"\narguments = {{checkpoint_path = "{pickled}"}}',
        f'architecture = "resnet18"\nweights = "{pickled}"',
    ):
        card = tmp_path / "card.toml"
        card.write_text(f"{student}[teacher]\n{line}\n", encoding="utf-8")
        command = ["run", str(card), "--data", "digits", "--out", str(tmp_path / "run")]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, result.output
        assert not marker.exists()


def test_a_checkpoint_runs_nothing(hub: Path, tmp_path: Path, marker: Path, digits: Data) -> None:
    """As its author can make it: with a right digest."""
    file = planted(hub / Path(models.ResNet18_Weights.IMAGENET1K_V1.url).name, marker)
    for architecture, argument, value in (
        ("resnet18", "weights", "IMAGENET1K_V1"),
        ("timm:resnet10t", "checkpoint_path", str(file)),
    ):
        spec = ModelSpec(
            architecture=architecture,
            arguments={argument: value},
            stem="large",
            class_names=digits.class_names,
            preprocess=digits.preprocess,
        )
        product = Product(model=nn.Linear(1, 1), spec=spec, result=TeacherResult())
        write_checkpoint(tmp_path, product, stage="teacher", lineage=())
        with pytest.raises(ValueError, match=f"does not accept the argument '{argument}'"):
            load_model(load_checkpoint(tmp_path))
        assert not marker.exists()


def test_an_old_timm_is_refused(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "__version__", "1.0.20")
    with pytest.raises(ValueError, match=r"timm 1\.0\.20 is too old.*install timm>=1\.0\.26"):
        build(torchvision_spec("timm:resnet10t", digits))
    floor = ".".join(map(str, TIMM_FLOOR))
    assert (ROOT / "pyproject.toml").read_text(encoding="utf-8").count(f"timm>={floor}") == 2
