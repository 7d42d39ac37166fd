"""What makes a stage run again: all that decides its result."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import compress
from compress.architectures.code_digest import code_digest
from compress.checkpoint import DESCRIPTION, Product, load_checkpoint, write_checkpoint
from compress.cli.main import main
from compress.data.dataset import Data
from compress.errors import CheckpointError
from compress.measure.config import MeasureConfig
from compress.run.key import Request, stage_key
from compress.run.lookup import read_stage_report
from compress.run.recipe import load_card
from compress.teacher.config import TeacherConfig
from compress.teacher.result import TeacherResult
from tests.conftest import saved, student_spec
from tests.processes import finish, start

PACKAGE = Path(compress.__file__).parent
CARD = """
[teacher]
architecture = "{teacher}"
{more}
[student]
architecture = "simple_cnn"
"""
NETWORK = """
import torch

def make(num_classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, 2), {activation}(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, num_classes),
    )
"""
UNTRAINED = ("--set", "teacher.train.epochs=0", "--set", "measure.rounds=5")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("field", "value"),
    [("activation", "relu"), ("stem", "large"), ("code", "other"), ("arguments", {"width": 0.5})],
)
def test_the_same_tensors_used_otherwise_are_another_network(
    digits: Data, tmp_path: Path, field: str, value: object
) -> None:
    """Stored teacher logits and finished stages are found by this digest."""
    first = saved(tmp_path / "first", student_spec(digits), digits)
    spec = dataclasses.replace(first.spec, **{field: value})  # type: ignore[arg-type]
    model = nn.BatchNorm2d(3)
    digests = set()
    for name, one in (("teacher", first.spec), ("distill", spec), ("prune", first.spec)):
        (tmp_path / name).mkdir()
        product = Product(model=model, spec=one, result=TeacherResult())
        written = write_checkpoint(tmp_path / name, product, stage=name, lineage=())
        assert load_checkpoint(tmp_path / name).digest == written.digest
        digests.add(written.digest)
    assert len(digests) == 2  # which stage made it does not matter


def test_a_card_with_another_activation_ships_another_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained, its tensors stay the same; the stages after it must run again all the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "smooth_network.py").write_text(NETWORK.format(activation="torch.nn.SiLU"))
    card, out = tmp_path / "card.toml", tmp_path / "run"
    command = ["run", card, "--data", "digits", "--pipeline", "ptq", "--out", out, *UNTRAINED]
    command += ["--set", "quantize.method=ptq", "--until", "quantize", "--trust"]
    activations = ("own", "relu")
    for activation in activations:
        card.write_text(
            CARD.format(teacher="smooth_network:make", more=f'activation = "{activation}"')
        )
        result = call(*command)
        assert result.exit_code == 0, result.output
        assert "already done" not in result.output
        assert load_checkpoint(out / "3-quantize").spec.activation == activation
    assert "made with network.activation = own" in " ".join(result.output.split())


def test_other_code_of_the_users_makes_the_stages_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "layers.py").write_text("from torch.nn import ReLU as Act\n")
    network = NETWORK.format(activation="nets.layers.Act")
    (tmp_path / "nets" / "net.py").write_text(f"import nets.layers\n{network}")
    (tmp_path / "card.toml").write_text(CARD.format(teacher="nets.net:make", more=""))
    command = ["run", "card.toml", "--data", "digits", "--trust"]
    command += ["--out", "run", "--until", "teacher", "--pipeline", "ptq", *UNTRAINED]
    log = tmp_path / "log"

    def run() -> str:
        assert finish(start(*command, log=log)) == 0, log.read_text()
        return log.read_text()

    assert "already done" not in run()
    assert run().count("already done") == 1
    (tmp_path / "nets" / "layers.py").write_text("from torch.nn import Hardtanh as Act\n")
    quantize = start("quantize", "--in", "run/0-teacher", "--trust", log=log)
    assert finish(quantize) == 2, log.read_text()
    assert "nets.net:make has changed since" in log.read_text()
    assert "already done" not in run()


def test_an_edited_description_is_refused(run_copy: Path) -> None:
    path = run_copy / "3-quantize" / DESCRIPTION
    raw = json.loads(path.read_text())
    raw["spec"]["class_names"].reverse()
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="damaged or was edited"):
        load_checkpoint(run_copy / "3-quantize")


@pytest.mark.parametrize(
    "source",
    ["data/splits.py", "data/preprocess.py", "measure/latency.py", "architectures/resize.py"],
)
def test_a_stage_depends_on_all_code_that_it_imports(tmp_path: Path, source: str) -> None:
    copy = tmp_path / "compress"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / source).write_text((copy / source).read_text() + "\n# another version\n")
    module = "compress.quantize.stage"
    assert code_digest(module, tmp_path) != code_digest(module, PACKAGE.parent)


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        *(("a.py", True), ("b.py", True), ("__init__.py", True), ("deep/d.py", True)),
        *(("deep/e.py", True), ("deep/__init__.py", True), ("unused.py", False)),
    ],
)
def test_imports_are_followed_however_they_are_written(
    tmp_path: Path, changed: str, matters: bool
) -> None:
    sources = {
        "__init__.py": "",
        "a.py": "import json, numpy.linalg\ndef run():\n    from .b import name\n",
        "b.py": "from .deep.d import name\n",
        "deep/__init__.py": "from . import e\n",
        "deep/d.py": "from ..b import name\n",
        "deep/e.py": "",
        "unused.py": "import package.a\n",
    }
    digests = []
    for more in ("", "# more\n"):
        root = tmp_path / f"version {len(more)}"
        for name, source in sources.items():
            file = root / "package" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source + more * (name == changed))
        digests.append(code_digest("package.a", root))
    assert (digests[0] != digests[1]) == matters


def test_the_key_knows_threads_and_versions(digits: Data, tmp_path: Path) -> None:
    request = Request(
        stage="teacher",
        config=TeacherConfig(),
        folder=tmp_path,
        run=None,
        card=load_card("resnet18"),
        parent=None,
        teachers=(),
        data=digits,
        measure=MeasureConfig(),
        seed=0,
    )
    threads, keys = torch.get_num_threads(), set()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            keys.add(stage_key(request))
    finally:
        torch.set_num_threads(threads)
    assert len(keys) == 2


@pytest.fixture(scope="module")
def other_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that was trained on other images than a run with the default settings."""
    out = tmp_path_factory.mktemp("other") / "run"
    command = ["run", "simple_cnn", "--data", "digits", "--seed", 3, "--until", "teacher"]
    command += ["--set", "data.validation=0.2", "--set", "teacher.train.epochs=1", "--out", out]
    result = call(*command, "--set", "teacher.train.min_steps=0", "--set", "measure.rounds=5")
    assert result.exit_code == 0, result.output
    return out / "0-teacher"


def test_the_validation_split_is_the_checkpoints_own(other_split: Path) -> None:
    for data in ((), ("--data", "digits")):
        result = call("evaluate", other_split, "--split", "validation", *data)
        assert result.exit_code == 0, result.output
        assert "on 287 validation images" in " ".join(result.output.split())


def test_another_data_set_is_scored_at_the_networks_size(
    other_split: Path, digit_folders: Path
) -> None:
    """A folder's own size is 224 px, this network's 16; what the channels are, the file says."""
    out = other_split.parent.parent / "colors"
    command = ["run", "simple_cnn", "--data", f"imagefolder:{digit_folders}", "--out", out]
    command += ["--until", "teacher", "--set", "data.size=16", *UNTRAINED]
    assert call(*command).exit_code == 0
    copy = shutil.copytree(digit_folders, other_split.parent.parent / "copy")
    result = call("evaluate", out / "0-teacher", "--data", f"imagefolder:{copy}")
    assert result.exit_code == 0, result.output
    assert "16 x 16 px" in result.output


def test_a_file_alone_has_no_validation_split(other_split: Path, tmp_path: Path) -> None:
    file = shutil.copy(other_split / "model.onnx", tmp_path)
    result = call("evaluate", file, "--split", "validation", "--data", "digits")
    assert result.exit_code == 2
    assert "its training images are unknown" in result.output
    assert call("evaluate", file, "--data", "digits").exit_code == 0


def test_a_teacher_that_may_have_seen_the_validation_images_is_told(
    other_split: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command: list[object] = ["run", "simple_cnn", "--data", "digits", "--until", "teacher"]
    command += ["--set", "measure.rounds=5", "--out", out]
    result = call(*command, "--teacher", other_split)
    assert result.exit_code == 0, result.output
    said = "was trained on another split (digits, seed 3, validation = 0.2)"
    assert said in " ".join(result.output.split())
    assert said in (out / "report.md").read_text()
    (finding,) = read_stage_report(out / "0-teacher").findings
    assert said in finding
    same = call(*command[:-1], tmp_path / "same", "--teacher", out / "0-teacher")
    assert said in " ".join(same.output.split()), "it is handed on with what it was taken from"
