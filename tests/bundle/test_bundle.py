"""Bundles: packing, verifying, measuring, and hostile ones."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard, ModelCardData

from compress.bundle import manifest as format_of
from compress.bundle.manifest import file_facts
from compress.bundle.verify import verify_bundle
from compress.bundle.write import write_bundle
from compress.cli.main import main
from compress.errors import CompressError
from compress.onnx_file import read_facts


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def bundle(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the finished run; to be read only."""
    out = tmp_path_factory.mktemp("bundles") / "small.bundle"
    result = call("bundle", finished_run, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return path


def resigned(folder: Path) -> None:
    """Makes the manifest agree with changed files, as an attacker would."""
    raw = json.loads((folder / "manifest.json").read_text())
    for name in raw["files"]:
        facts = file_facts(folder / name)
        raw["files"][name] = {"size_bytes": facts.size_bytes, "sha256": facts.sha256}
    (folder / "manifest.json").write_text(json.dumps(raw))


def test_a_bundle_holds_what_another_machine_needs(bundle: Path, finished_run: Path) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    assert {path.name for path in bundle.iterdir()} == {*raw["files"], "manifest.json"}
    assert {*raw["files"]} == {
        "README.md", "labels.json", "model-float.onnx", "model-int8.onnx", "predict.py", "test.npz",
    }  # fmt: skip
    assert raw["ship"] == json.loads((finished_run / "report.json").read_text())["ship"][9:]
    for name in raw["models"]:
        assert (bundle / name).read_bytes() == (finished_run / "4-export" / name).read_bytes()
    labels = json.loads((bundle / "labels.json").read_text())
    assert labels == list(read_facts(bundle / raw["ship"]).class_names)
    with np.load(bundle / "test.npz") as arrays:
        assert len(arrays["images"]) == 200
        session = onnxruntime.InferenceSession(bundle / raw["ship"])
        (got,) = session.run(None, {"images": arrays["images"]})
        assert np.allclose(got, arrays[f"logits of {raw['ship']}"], atol=1e-4)
        counts = np.bincount(arrays["labels"])
    assert counts.max() - counts.min() <= 3  # the digits are balanced


def test_the_card_is_valid_on_hugging_face(bundle: Path, finished_run: Path) -> None:
    text = (bundle / "README.md").read_text(encoding="utf-8")
    facts = ModelCard(text).data  # parses the YAML
    assert isinstance(facts, ModelCardData)
    assert facts.pipeline_tag == "image-classification"
    assert facts.library_name == "onnx"
    assert facts.eval_results is not None
    (result,) = facts.eval_results
    report = json.loads((finished_run / "report.json").read_text())
    assert result.metric_value == pytest.approx(report["stages"][-1]["top1"] / 100, abs=1e-4)
    assert str(finished_run.parent) not in text


def test_a_bundle_is_verified_as_a_folder_and_as_a_zip(bundle: Path, tmp_path: Path) -> None:
    packed = tmp_path / "small.zip"
    for path in (bundle, zipped(bundle, packed)):
        result = call("verify", path)
        assert result.exit_code == 0, result.output
        for name in ("model-float.onnx", "model-int8.onnx"):
            assert f"{name}: the expected class for 100.0 % of 200 images" in result.output
    assert call("benchmark", packed).exit_code == 2
    absent = call("verify", tmp_path / "absent.zip")
    assert absent.exit_code == 2
    assert "absent.zip: No such file" in absent.output


def test_a_zip_without_test_images(finished_run: Path, tmp_path: Path) -> None:
    packed = tmp_path / "small.zip"
    result = call("bundle", finished_run, "--out", packed, "--no-test-images", "--images", 20)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]
    assert [one.top1 for one in verify_bundle(packed)] == [None, None]
    with zipfile.ZipFile(packed) as archive:
        assert json.loads(archive.read("manifest.json"))["images"] == "noise"
    again = call("bundle", finished_run, "--out", packed)
    assert again.exit_code == 2
    assert "exists; remove it" in again.output


def test_an_unfinished_run_has_no_bundle(run_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(run_copy / "4-export")
    with pytest.raises(CompressError, match="is unfinished: it has no export stage"):
        write_bundle(run_copy, tmp_path / "out", n_images=10, noise=True)
    assert not (tmp_path / "out").exists()


def test_each_benchmark_appends_a_row_for_its_host(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.measure.latency.SLICE_S", 0.001)
    for _ in range(2):
        result = call("benchmark", copy, "--threads", "1,2")
        assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (copy / "benchmarks.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert [row["file"] for row in rows[1]["latency"]] == [
        "model-float.onnx",
        "model-int8.onnx",
    ] * 2
    assert rows[1]["host"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert rows[1]["agreement"][0]["agreement"] == 100
    assert len(verify_bundle(copy)) == 2  # the rows are not part of the manifest


def _flip(folder: Path) -> None:
    path = folder / "model-int8.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _grow(folder: Path) -> None:
    with (folder / "test.npz").open("ab") as file:
        file.truncate(2**40)


def _change_manifest(folder: Path, **values: object) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**raw, **values}))


def _samples(folder: Path, **arrays: np.ndarray) -> None:
    with np.load(folder / "test.npz") as before:
        np.savez(folder / "test.npz", allow_pickle=True, **{**before, **arrays})
    resigned(folder)


def _bomb(folder: Path) -> None:
    """A header that promises more than any memory holds."""
    with np.load(folder / "test.npz") as before:
        arrays = dict(before)
    with zipfile.ZipFile(folder / "test.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                if name == "images":
                    header = {"descr": "|u1", "fortran_order": False, "shape": (2**60,)}
                    np.lib.format.write_array_header_1_0(file, header)
                else:
                    np.lib.format.write_array(file, array)
    resigned(folder)


def _damaged_model(folder: Path) -> None:
    (folder / "model-int8.onnx").write_bytes(b"no model")
    resigned(folder)


def _other_labels(folder: Path) -> None:
    (folder / "labels.json").write_text('["cat"]')
    resigned(folder)


def _wrong_logits(folder: Path) -> None:
    with np.load(folder / "test.npz") as before:
        logits = before["logits of model-int8.onnx"]
    _samples(folder, **{"logits of model-int8.onnx": np.roll(logits, 1, axis=1)})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_flip, "model-int8.onnx in .* was changed or damaged"),
        (_grow, "test.npz in .* was changed or damaged"),
        (lambda folder: (folder / "labels.json").unlink(), "labels.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not a bundle"),
        (lambda folder: (folder / "manifest.json").write_text("{" * 99), "is not a bundle"),
        (lambda folder: _change_manifest(folder, format=2), "is not a bundle"),
        (lambda folder: _change_manifest(folder, ship="../x.onnx"), "is not a bundle"),
        (
            lambda folder: _change_manifest(folder, files={"../../etc/passwd": {}}),
            "is not a bundle",
        ),
        (lambda folder: _samples(folder, images=np.zeros((0,))), "images must be uint8"),
        (lambda folder: _samples(folder, images=np.array([{}])), "test.npz is damaged"),
        (lambda folder: _samples(folder, labels=np.zeros(200)), "labels must be int64"),
        (_bomb, "test.npz is damaged"),
        (_damaged_model, "model-int8.onnx is not an ONNX file"),
        (_other_labels, "different classes"),
        (_wrong_logits, "model-int8.onnx computes other results on this machine"),
    ],
)
def test_a_hostile_or_damaged_bundle_is_refused(
    copy: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(copy)
    with pytest.raises(CompressError, match=message):
        verify_bundle(copy)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/evil.txt", "..\\evil.txt", "C:x"])
def test_a_zip_writes_nothing_outside(copy: Path, tmp_path: Path, name: str) -> None:
    packed = zipped(copy, tmp_path / "slip.zip")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(CompressError, match=r"slip.zip is not a bundle: it has files in folders"):
        verify_bundle(packed)
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_huge_or_broken_zip_is_refused(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = zipped(copy, tmp_path / "small.zip")
    content = packed.read_bytes()
    for place in (30, len(content) // 2, len(content) - 5):
        broken = bytearray(content)
        broken[place : place + 4] = b"\xff" * 4
        packed.write_bytes(broken)
        with pytest.raises(CompressError, match=r"get it anew|is not a bundle"):
            verify_bundle(packed)
    packed.write_bytes(content)
    monkeypatch.setattr(format_of, "MAX_BYTES", 1000)
    with pytest.raises(CompressError, match="unpacks to more than"):
        verify_bundle(packed)
    with pytest.raises(CompressError, match="is not a bundle"):
        verify_bundle(copy)
