"""What a file may say that no file of ours does; each ended in a traceback, or took all memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from compress.architectures.build import build
from compress.checkpoint import (
    DESCRIPTION,
    MODEL_FILE,
    REPORT_JSON,
    TENSORS,
    Checkpoint,
    _checksum,
    load_checkpoint,
)
from compress.data.dataset import Data
from compress.errors import CheckpointError, CompressError
from compress.files import MAX_BYTES, file_digest, parse_json, read_text, write_json
from compress.int8.restore import load_model
from compress.onnx_file import export_onnx, read_facts
from compress.run.benchmark import benchmark_files
from compress.run.evaluate import evaluate_file, predict_images
from compress.run.lookup import read_stage_report
from compress.run.recipe import load_card, load_recipe
from compress.run.report import write_run_report
from tests.conftest import saved, student_spec

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def untouched(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its ONNX file, to be copied."""
    folder, spec = tmp_path_factory.mktemp("untouched") / "checkpoint", student_spec(digits)
    model = load_model(saved(folder, spec, digits))
    export_onnx(model, spec, folder / MODEL_FILE, digest="", stage="distill")
    return folder


@pytest.fixture
def checkpoint(untouched: Path, tmp_path: Path) -> Checkpoint:
    return load_checkpoint(shutil.copytree(untouched, tmp_path / "checkpoint"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a description and makes its checksum anew."""
    raw = json.loads((folder / DESCRIPTION).read_text())
    change(raw)
    write_json(folder / DESCRIPTION, {**raw, "checksum": _checksum(raw)})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda raw: raw["spec"].update(class_names=["one"]), id="one class"),
        pytest.param(lambda raw: raw["spec"]["preprocess"].update(size=0), id="no pixels"),
        pytest.param(lambda raw: raw["spec"]["preprocess"].update(size=10**9), id="huge images"),
        pytest.param(lambda raw: raw["spec"]["preprocess"].update(resize=8), id="resize below"),
        pytest.param(lambda raw: raw["spec"]["preprocess"].update(channels=2), id="two channels"),
        pytest.param(lambda raw: raw["spec"]["preprocess"].update(std=[0]), id="no deviation"),
        pytest.param(lambda raw: raw["spec"]["preprocess"].update(mean=[1, 2]), id="a mean more"),
        pytest.param(lambda raw: raw["spec"]["preprocess"].update(mean=[1e300]), id="huge mean"),
        pytest.param(lambda raw: raw.update(stage="../.."), id="stage"),
        pytest.param(lambda raw: raw.update(removed=["nothing"]), id="no such block"),
        pytest.param(lambda raw: raw.update(removed=[""]), id="the whole network"),
        pytest.param(lambda raw: raw.update(removed=["conv1"]), id="no block"),
        pytest.param(lambda raw: raw.update(shapes={"nothing": [3]}), id="no such tensor"),
        pytest.param(lambda raw: raw.update(shapes={"fc.weight": [10, 2**40]}), id="huge tensor"),
        pytest.param(lambda raw: raw.update(shapes={"fc.weight": [10, -1]}), id="negative"),
        pytest.param(lambda raw: raw.update(shapes={"fc.weight": [5, 5]}), id="misfit"),
        pytest.param(
            lambda raw: raw["spec"]["arguments"].update(width=4, depths=[100] * 4), id="huge"
        ),
        pytest.param(lambda raw: raw["spec"]["arguments"].update(depths=[10**9]), id="endless"),
        pytest.param(lambda raw: raw["spec"].update(architecture="vit_h_14"), id="2.5 GB"),
        pytest.param(
            lambda raw: raw["spec"].update(architecture="resnet18", arguments={"groups": 0}),
            id="torchvision's own error",
        ),
        pytest.param(
            lambda raw: raw.update(quantized={"float_layers": ["nothing"]}), id="not quantized"
        ),
    ],
)
def test_a_description_of_no_network_of_ours_is_refused(
    checkpoint: Checkpoint, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite(checkpoint.folder, change)
    with pytest.raises(CheckpointError):
        load_model(load_checkpoint(checkpoint.folder))


@pytest.mark.parametrize(
    "text", [DEEP, '{"format": 5, "spec": ' + DEEP + "}", "9" * 5000, b"\xff\xfe", "5", "null"]
)
def test_a_description_that_python_cannot_parse_is_damaged(
    checkpoint: Checkpoint, text: str | bytes
) -> None:
    raw = text if isinstance(text, bytes) else text.encode()
    (checkpoint.folder / DESCRIPTION).write_bytes(raw)
    with pytest.raises(CheckpointError, match="is damaged or was edited"):
        load_checkpoint(checkpoint.folder)


@pytest.mark.parametrize("text", [DEEP, "[1e999]", "NaN", "1" * 30, "[" * 40 + "]" * 40, "{"])
def test_json_that_cannot_be_written_again_is_refused(text: str) -> None:
    with pytest.raises(CompressError):
        parse_json(text)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CompressError, match="larger than 64 MiB"):
        read_text(tmp_path / "large")
    with pytest.raises(CompressError, match="not a file"):
        read_text(Path("/dev/zero"))


def test_a_checkpoint_without_a_lineage_names_no_data(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="has an empty lineage"):
        _ = load_checkpoint(checkpoint.folder).key


def resigned(checkpoint: Checkpoint, content: bytes) -> Checkpoint:
    path = checkpoint.folder / TENSORS
    path.write_bytes(content)
    rewrite(checkpoint.folder, lambda raw: raw.update(tensors=file_digest(path)))
    return load_checkpoint(checkpoint.folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}"],
)
def test_tensors_that_are_no_safetensors_are_refused(
    checkpoint: Checkpoint, content: bytes
) -> None:
    with pytest.raises(CheckpointError):
        load_model(resigned(checkpoint, content))


def test_tensors_of_another_type_are_refused(checkpoint: Checkpoint) -> None:
    """Complex ones were cast, with a warning."""
    tensors = load_file(checkpoint.folder / TENSORS)
    tensors["network.fc.bias"] = tensors["network.fc.bias"].to(torch.complex64)
    save_file(tensors, checkpoint.folder / TENSORS)
    content = (checkpoint.folder / TENSORS).read_bytes()
    with pytest.raises(CheckpointError, match=r"complex64 \[10\] there, but float32 \[10\]"):
        load_model(resigned(checkpoint, content))


def test_a_network_is_tried_without_memory_and_leaves_the_random_numbers_alone(
    digits: Data,
) -> None:
    """What a run is trained to depends on them."""
    torch.manual_seed(0)
    first = build(student_spec(digits)).state_dict()
    with pytest.raises(CompressError, match="more than 1,000 parameters"):
        build(student_spec(digits), most=1000)
    torch.manual_seed(0)
    second = build(student_spec(digits)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


CARD = '[teacher]\narchitecture = "simple_cnn"\n[student]\narchitecture = "simple_cnn"\n'


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (CARD + f"arguments = {{ widths = {DEEP} }}", "own.toml"),
        (CARD + "arguments = { day = 1979-05-27 }", "quote it"),
        (CARD + "arguments = { width = inf }", "not finite"),
        (CARD + "weights = 1" + "0" * 5000, "own.toml"),
        ("teacher = 5", "teacher"),
        ("\x00", "own.toml"),
        ("", "Field required"),
    ],
)
def test_a_card_of_no_sense_is_explained(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(CompressError) as caught:
        load_card(str(tmp_path / "own.toml"))
    assert part in str(caught.value)


def test_cards_and_recipes_are_utf_8(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_bytes(b"\xff")
    for load in (load_card, load_recipe):
        with pytest.raises(CompressError, match="not UTF-8 text"):
            load(str(tmp_path / "own.toml"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("stages = 5", "stages must be some of"),
        ("stages = [[], {}]", "stages must be some of"),
        ('seed = "x"', "seed"),
        ("seed = -1", "seed"),
        ("description = 1", "description"),
        ("data = 5", "data must be a table of settings, got 5"),
        ("[teacher]\ntrain = 5", "teacher.train must be a table of settings, got 5"),
        ("[teacher.train]\nlr = inf", "not finite"),
        ("[teacher.train]\nepochs = [[]]", "teacher.train.epochs must be"),
        ("[data]\nsize = 1000000", "data.size must be an integer in [0, 2048]"),
        (f"[data]\nsize = {DEEP}", "own.toml"),
    ],
)
def test_a_recipe_of_no_sense_is_explained(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(CompressError) as caught:
        load_recipe(str(tmp_path / "own.toml"))
    assert part in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_setting_on_the_command_line_has_64_bits() -> None:
    for override in ("teacher.train.lr=1e999", "teacher.train.epochs=1" + "0" * 30):
        with pytest.raises(CompressError):
            load_recipe("default", [override])
    with pytest.raises(CompressError, match="seed"):
        load_recipe("default", seed=2**63)


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("0-teacher", {"size_bytes": 0}),
        ("0-teacher", {"top1": 1e300}),
        ("0-teacher", {"latency_ms_p50": -1}),
        ("1-distill", {"top1_ci95": [0, 1]}),
        ("1-distill", {"result": {"alone": {}}}),
        ("1-distill", {"result": None}),
        ("1-distill", {"findings": 5}),
        ("2-prune", {"result": {"iterations": [{}]}}),
        ("2-prune", {"result": {"iterations": "x"}}),
        ("3-quantize", {"host": {**dict.fromkeys(("cpu", "system", "python"), ""), "cores": 1}}),
        ("4-export", {"file": "../../../etc/passwd"}),
        ("4-export", {"stage": "teacher"}),
        ("4-export", {"result": {"parity": {"a": 1}}}),
    ],
)
def test_a_report_that_cannot_be_shown_is_damaged(
    run_copy: Path, stage: str, change: dict[str, Any]
) -> None:
    path = run_copy / stage / REPORT_JSON
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CompressError, match=stage):
        write_run_report(run_copy)


@pytest.mark.parametrize("row", ["{}", "5", '{"epoch": "x"}', DEEP, "{"])
def test_a_damaged_history_is_named(run_copy: Path, row: str) -> None:
    (run_copy / "1-distill" / "history.jsonl").write_text(row)
    with pytest.raises(CompressError, match=r"history.jsonl is damaged"):
        write_run_report(run_copy)


def test_a_report_in_another_encoding_is_damaged(run_copy: Path) -> None:
    (run_copy / "0-teacher" / REPORT_JSON).write_bytes(b"\xff\xfe{}")
    with pytest.raises(CompressError, match="missing or damaged"):
        read_stage_report(run_copy / "0-teacher")


def test_a_layer_named_like_a_formula_is_drawn(run_copy: Path) -> None:
    path = run_copy / "2-prune" / REPORT_JSON
    raw = json.loads(path.read_text())
    raw["result"]["widths"][0]["layer"] = "$\\frac{$"
    path.write_text(json.dumps(raw))
    write_run_report(run_copy)


@pytest.fixture
def onnx_file(untouched: Path, tmp_path: Path) -> Path:
    """A file alone, without the checkpoint that it was exported from."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    Image.new("L", (20, 20), 128).save(folder / "image.png")
    return Path(shutil.copy(untouched / MODEL_FILE, folder))


def _elsewhere(place: str) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)

    return change


def _grown(kind: str) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        shape = onnx.numpy_helper.from_array(np.array([2**14, 2**14]), "shape")
        proto.graph.initializer.extend([shape, onnx.numpy_helper.from_array(np.ones(1), "one")])
        puts = ["shape"] if kind == "ConstantOfShape" else ["one", "shape"]
        proto.graph.node.insert(0, onnx.helper.make_node(kind, puts, ["grown"]))
        sums = onnx.helper.make_node("ReduceSum", ["grown"], ["sum"])
        proto.graph.node.insert(1, sums)

    return change


def _metadata(name: str, text: str) -> Callable[[onnx.ModelProto], object]:
    def change(proto: onnx.ModelProto) -> None:
        entry = next(entry for entry in proto.metadata_props if entry.key == name)
        entry.value = text

    return change


def _fixed_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


def _renamed(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "image"
    proto.graph.node[0].input[0] = "image"


def _fewer_classes(proto: onnx.ModelProto) -> None:
    _metadata("class_names", json.dumps(["a", "b"]))(proto)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_elsewhere("../../secret"), id="weights outside"),
        pytest.param(_elsewhere("/dev/zero"), id="weights from a device"),
        pytest.param(_elsewhere("*/_ORT_MEM_ADDR_/*"), id="weights from memory"),
        pytest.param(_elsewhere("a\x00b"), id="weights from nowhere"),
        pytest.param(_grown("ConstantOfShape"), id="a gigabyte from a constant"),
        pytest.param(_grown("Expand"), id="two gigabytes from a number"),
        pytest.param(_metadata("class_names", "5"), id="classes are a number"),
        pytest.param(_metadata("class_names", DEEP), id="classes nest"),
        pytest.param(_metadata("preprocess", "{}"), id="no preprocessing"),
        pytest.param(_metadata("preprocess", "[]"), id="preprocessing is a list"),
        pytest.param(_fewer_classes, id="fewer classes"),
        pytest.param(_renamed, id="another input"),
    ],
)
def test_an_onnx_file_that_would_do_something_else_is_refused(
    onnx_file: Path, change: Callable[[onnx.ModelProto], object]
) -> None:
    (onnx_file.parent.parent / "secret").write_bytes(bytes(10_000))
    proto = onnx.load(onnx_file)
    change(proto)
    onnx_file.write_bytes(proto.SerializeToString())
    with pytest.raises(CompressError):
        read_facts(onnx_file)
    with pytest.raises(CompressError):
        evaluate_file(onnx_file, "digits", "test")
    with pytest.raises(CompressError):
        list(predict_images(onnx_file, [onnx_file.parent / "image.png"], 1))


@pytest.mark.parametrize(
    "change", [_elsewhere("../../secret"), _elsewhere("/dev/zero"), _grown("Expand"), _fixed_batch]
)
def test_an_onnx_file_of_any_origin_is_looked_at_before_it_is_timed(
    onnx_file: Path, change: Callable[[onnx.ModelProto], object]
) -> None:
    proto = onnx.load(onnx_file)
    change(proto)
    onnx_file.write_bytes(proto.SerializeToString())
    with pytest.raises(CompressError):
        benchmark_files([onnx_file], [1], [1], rounds=1)


def test_weights_beside_an_onnx_file_may_be_timed(onnx_file: Path) -> None:
    """As large files of other origin keep them."""
    proto = onnx.load(onnx_file)
    onnx.save(proto, onnx_file, save_as_external_data=True, location="data")
    assert benchmark_files([onnx_file], [1], [1], rounds=1).rows


def test_a_file_that_runs_on_one_image_only_is_told(onnx_file: Path) -> None:
    proto = onnx.load(onnx_file)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx_file.write_bytes(proto.SerializeToString())
    with pytest.raises(CompressError, match="ONNX Runtime cannot run the file"):
        evaluate_file(onnx_file, "digits", "test")


def test_logits_that_are_not_finite_are_told(onnx_file: Path) -> None:
    proto = onnx.load(onnx_file)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            nothing = np.full(tuple(tensor.dims), np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(nothing, tensor.name))
    onnx_file.write_bytes(proto.SerializeToString())
    with pytest.raises(CompressError, match="not return finite logits"):
        list(predict_images(onnx_file, [onnx_file.parent / "image.png"], 1))


def test_a_device_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to("/dev/zero")
    with pytest.raises(CompressError, match="not an ONNX file"):
        read_facts(tmp_path / "link.onnx")


def test_an_input_of_gigabytes_is_not_timed(tmp_path: Path) -> None:
    kinds = onnx.TensorProto
    put = onnx.helper.make_tensor_value_info("x", kinds.FLOAT, ["batch", 2**20, 2**20])
    out = onnx.helper.make_tensor_value_info("y", kinds.FLOAT, ["batch", 2**20, 2**20])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [put], [out])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx"
    )
    with pytest.raises(CompressError):
        benchmark_files([tmp_path / "a.onnx"], [1], [1], rounds=1)


def test_a_card_in_a_checkpoint_is_checked_too(run_copy: Path) -> None:
    from compress.export.config import ExportConfig
    from compress.run.single_stage import run_single_stage

    folder = run_copy / "3-quantize"
    rewrite(folder, lambda raw: raw["lineage"][-1].update(card={"teacher": 5}))
    shutil.rmtree(run_copy / "4-export")
    with pytest.raises(CompressError, match=r"student: Field required"):
        run_single_stage("export", ExportConfig(), source=folder, out=None, teachers=())
