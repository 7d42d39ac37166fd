"""`compress benchmark`: files, runtimes, tables, and when nothing is concluded."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from pydantic import TypeAdapter

from compress.cli.main import main
from compress.measure.benchmark import Agreement, BenchmarkResult
from compress.measure.latency import onnx_model
from compress.run.benchmark import _same

ROOT = Path(__file__).parents[2]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short turns."""
    monkeypatch.setattr("compress.measure.latency.SLICE_S", 0.001)
    monkeypatch.setattr("compress.measure.latency.PROCESSES", 3)


@pytest.mark.usefixtures("_quick")
def test_benchmark_compares_files(finished_run: Path) -> None:
    files = [finished_run / name for name in ("0-teacher/model.onnx", "2-prune")]
    result = call("benchmark", *files, "--threads", "1,2", "--batch", "1,8", "--json")
    assert result.exit_code == 0, result.output
    raw = json.loads(result.stdout)
    rows = TypeAdapter(BenchmarkResult).validate_python(raw, extra="forbid").rows
    settings = [(row.latency.threads, row.latency.batch) for row in rows]
    assert settings == [(1, 1), (1, 1), (1, 8), (1, 8), (2, 1), (2, 1), (2, 8), (2, 8)]
    for teacher, pruned in zip(rows[::2], rows[1::2], strict=True):
        assert (teacher.latency.speedup, teacher.verdict) == (1, None)
        low, high = pruned.latency.speedup_ci95
        assert low <= pruned.latency.speedup <= high
        assert (pruned.verdict == "not concluded") == bool(pruned.doubts)
        assert pruned.file == str(finished_run / "2-prune/model.onnx")
        assert pruned.size_bytes == Path(pruned.file).stat().st_size
        assert pruned.memory_bytes is not None
        assert pruned.memory_bytes > pruned.size_bytes
        assert pruned.agreement is None
        assert pruned.operators == ()
    wrong = call("benchmark", files[0], "--threads", "0")
    assert wrong.exit_code == 2
    assert "must be positive integers" in wrong.output


@pytest.mark.usefixtures("_quick")
def test_no_ratio_is_concluded_with_more_threads_than_cores(finished_run: Path) -> None:
    """The numbers are printed all the same."""
    files = [finished_run / name for name in ("0-teacher", "2-prune")]
    threads = (os.cpu_count() or 1) + 1
    result = call("benchmark", *files, "--threads", threads, "--profile")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert f"{threads} threads, batch 1: no ratio is concluded: {threads} threads share" in text
    (line,) = re.findall(rf"^2-prune/model.onnx +{threads} +1 (.+)$", result.stdout, re.M)[:1]
    assert len(re.findall(r"\d", line)) > 3
    assert "x" not in line
    for name in ("0-teacher", "2-prune"):
        assert f"{name}/model.onnx, {threads} threads, batch 1 operator nodes ms %" in text


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
def test_torch_takes_turns_with_the_file_exported_from_it(finished_run: Path) -> None:
    prune, int8 = finished_run / "2-prune", finished_run / "3-quantize"
    result = call("benchmark", prune, int8, "--against", "torch", "--json")
    assert result.exit_code == 0, result.output
    assert f"torch only simulates the int8 network of {int8}" in result.stderr
    rows = TypeAdapter(BenchmarkResult).validate_json(result.stdout).rows
    assert [row.runtime for row in rows] == ["onnxruntime", "torch", "onnxruntime"]
    _, torch, quantized = rows
    assert torch.file == str(prune / "model.onnx")
    assert torch.agreement == Agreement(top1_agreement=100, n_images=200, images="test")
    assert torch.latency.n_runs >= 60
    assert quantized.agreement is None


def test_torch_needs_a_float_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(finished_run / "2-prune" / "model.onnx", tmp_path))
    for model, part in (
        (alone, f"torch cannot run {alone}: it needs the network, from a checkpoint or a run"),
        (finished_run / "3-quantize", "torch only simulates the int8 network of"),
    ):
        result = call("benchmark", model, "--against", "torch")
        assert result.exit_code == 2
        assert part in result.output


@pytest.mark.slow
def test_openvino_takes_turns_with_onnx_runtime(finished_run: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows all else from this one."""
    environment = tmp_path / "environment"
    python, uv = environment / "bin" / "python", Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--python", sys.executable, environment], check=True)
    install: list[str | Path] = [uv, "pip", "install", "--python", python, "--no-deps", "openvino"]
    subprocess.run(install, check=True)
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "lend.pth").write_text(f"{ROOT}\n{Path(pytest.__file__).parents[1]}\n")
    command: list[str | Path] = [
        python,
        "-m",
        "compress",
        "benchmark",
        finished_run,
        "--against",
        "openvino",
    ]
    command += ["--batch", "1,8", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = TypeAdapter(BenchmarkResult).validate_json(done.stdout)
    assert [row.runtime for row in result.rows] == ["onnxruntime", "openvino"] * 2
    assert set(result.versions) == {"onnxruntime", "openvino"}
    for row in result.rows[1::2]:
        assert row.agreement is not None
        assert row.agreement.images == "test"
        assert row.agreement.top1_agreement >= 99
        assert row.latency.cold_latency_ms_p50 is not None
        assert row.memory_bytes is not None
        assert row.memory_bytes > 0


def test_benchmark_names_what_is_not_installed(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were absent
    result = call("benchmark", finished_run, "--against", "openvino")
    assert result.exit_code == 2
    assert "openvino is not installed: run `pip install openvino`" in result.output
    result = call("benchmark", finished_run, "--against", "tflite")
    assert result.exit_code == 2
    assert "--against must be openvino or torch, got 'tflite'" in result.output


def open_file(path: Path, shape: list[int | str]) -> Path:
    """A file that averages its images, to one value each."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 1])
    axes = onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    shaped = onnx.numpy_helper.from_array(np.array([-1, 1]), "shape")
    nodes = [
        onnx.helper.make_node("ReduceMean", ["x", "axes"], ["m"]),
        onnx.helper.make_node("Reshape", ["m", "shape"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [value], [out], [axes, shaped])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


@pytest.mark.usefixtures("_quick")
def test_open_dimensions_are_not_guessed(tmp_path: Path) -> None:
    path = open_file(tmp_path / "open.onnx", ["N", 3, "H", "W"])
    result = call("benchmark", path)
    assert result.exit_code == 2
    assert "its input x has shape [N, 3, H, W]; specify the image size with --size" in result.output
    assert call("benchmark", path, "--size", 8).exit_code == 0
    assert onnx_model(path, threads=1, batch=2, size=8).inputs["x"][0] == [2, 3, 8, 8]
    closed = open_file(tmp_path / "channels.onnx", ["N", "C", "H", "W"])
    result = call("benchmark", closed, "--size", 8)
    assert result.exit_code == 2
    assert "export it with a fixed number of channels" in result.output


def test_runtimes_must_agree_on_an_only_output() -> None:
    expected = np.array([[0.1], [0.9], [0.5]])
    assert _same(expected + 1e-4, expected).all()
    assert _same(1 - expected, expected).tolist() == [False, False, True]
    assert not _same(np.zeros((3, 2)), expected).any()
    assert _same(np.array([[1.0, 2.0]]), np.array([[0.0, 9.0]])).all()


def test_benchmark_explains_what_it_cannot_time(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    result = call("benchmark", text)
    assert result.exit_code == 2
    assert "text.onnx is not an ONNX file, or is damaged" in result.output
    fixed = tmp_path / "fixed.onnx"
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [out])
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
        ),
        fixed,
    )
    result = call("benchmark", fixed, "--batch", "8")
    assert result.exit_code == 2
    assert "accepts only batches of 1, got 8" in result.output
