"""The command, and files that are none."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from compress.cli.main import main
from compress.doctor.examine import examine
from compress.errors import CompressError
from tests.doctor.helpers import (
    DENORMAL,
    float_model,
    insert,
    int8_model,
    put_values,
    saved,
    values,
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def test_a_sound_file_ends_with_exit_code_0(tmp_path: Path) -> None:
    path = saved(int8_model(), tmp_path)
    result = call(path)
    assert (result.exit_code, result.stdout) == (0, f"{path}: nothing found\n")


def test_notes_leave_the_exit_code_0(tmp_path: Path) -> None:
    path = saved(float_model(), tmp_path, lambda proto: proto.ClearField("metadata_props"))
    result = call(path)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("note: missing-metadata: ")
    assert result.stdout.splitlines()[-1] == f"{path}: 1 note"


def test_findings_are_explained_the_worst_first(tmp_path: Path) -> None:
    def damage(proto: onnx.ModelProto) -> None:
        weight = values(proto, "conv2.w")
        weight[0, 0], weight[1, 0] = DENORMAL, np.inf
        put_values(proto, "conv2.w", weight)
        del proto.metadata_props[:]

    path = saved(float_model(), tmp_path, damage)
    result = call(path)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith(("error", "warning", "note"))] == [
        "error: not-finite: 1 layer with weights that are not finite",
        "warning: denormals: 9 denormal weights",
        "note: missing-metadata: the metadata has no class names and no preprocessing",
    ]
    assert "  where: conv2.w" in lines
    assert "microsoft/onnxruntime#6865" in result.stdout
    assert max(map(len, lines)) <= 100 + len(str(tmp_path))
    assert f"{path}: 1 error, 1 warning, 1 note" in lines
    as_json = call(path, "--json")
    assert as_json.exit_code == 1
    written = json.loads(as_json.stdout)
    assert written["file"] == str(path)
    assert [finding["check"] for finding in written["findings"]] == [
        "not-finite",
        "denormals",
        "missing-metadata",
    ]


def test_a_run_is_examined_by_the_file_that_it_ships(finished_run: Path) -> None:
    result = call(finished_run)
    assert result.exit_code == 0, result.output
    assert "4-export/model-" in result.stdout.splitlines()[-1]


def test_names_from_the_file_are_made_printable(tmp_path: Path) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        put_values(proto, "pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
        insert(proto, "Pad", "conv2", ["pads"], mode="reflect")
        next(node for node in proto.graph.node if node.name == "planted").name = "\x1b[31m" * 99

    result = call(saved(float_model(), tmp_path, rename))
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 300


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _without_a_graph(path: Path) -> None:
    onnx.save(onnx.helper.make_model(onnx.GraphProto(), ir_version=10), path)


def _truncated(path: Path) -> None:
    content = saved(int8_model(), path.parent).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _of_another_domain(path: Path) -> None:
    proto = float_model()
    proto.graph.node[1].domain = "example.org"
    proto.opset_import.add(domain="example.org", version=1)
    onnx.save(proto, path)


def _of_unknown_operators(path: Path) -> None:
    proto = float_model()
    proto.graph.node[1].op_type = "Magic"
    onnx.save(proto, path)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def _text(path: Path) -> None:
    path.write_text("a model")


@pytest.mark.parametrize(
    "make",
    [_empty, _without_a_graph, _truncated, _of_another_domain, _of_unknown_operators, _huge, _text],
)
def test_what_is_no_model_is_told(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    make(path)
    with pytest.raises(CompressError, match="bad.onnx"):
        examine(path)
    result = call(path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) <= 2  # a spinner, and the message


def test_a_custom_operator_may_be_called_like_a_known_one(tmp_path: Path) -> None:
    """A function of the file's own, with other inputs than the operator's."""
    proto = float_model()
    proto.opset_import.add(domain="own", version=1)
    body = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    opsets = [onnx.helper.make_opsetid("", 18)]
    proto.functions.append(onnx.helper.make_function("own", "Conv", ["x"], ["y"], body, opsets))
    insert(proto, "Conv", "conv2", [], domain="own")
    assert examine(saved(proto, tmp_path)).findings == ()
