"""How each tool quantizes one ONNX file: in a process, and some in an environment, of its own.

This file is also the program of those processes, `python bench/peers.py TOOL SOURCE IMAGES OUT`,
and runs where `compress` is not installed: only the function that needs a library imports it.
"""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

INPUT = "images"
BATCH = 32
"""Images a calibration batch, for the tools that take batches."""
READY = "ready"
"""Lies in an environment whose installation went well; it holds what was asked for."""

Job = Callable[[], None]
"""Quantizes and writes the file; everything was imported and loaded before."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to make an int8 file."""

    prepare: Callable[[Path, np.ndarray, Path], Job]
    """From the source, the images (uint8 `[N, C, H, W]`) and the path to write."""
    package: str
    """Whose version is reported."""
    takes_checkpoint: bool = False
    """Its source is a checkpoint folder, not the float ONNX file."""
    takes_plain_export: bool = False
    """Its source is what `torch.onnx.export` writes, without our clean-up of the graph."""
    environment: str | None = None
    """Name of its environment's folder; None: the one this program runs in."""
    requirements: tuple[str, ...] = ()
    """Of its environment."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a quantization took."""

    seconds: float
    """From the loaded source to the written file: without imports and loading the images, with
    the tool's own preparation of the graph and its export."""
    memory_mb: float
    """The process's highest resident memory while it quantized, above what it held just before,
    libraries and images included; MB of 1e6 bytes. Not `ru_maxrss`: on Linux a process inherits
    that of the one that started it."""
    version: str


def run_peer(tool: str, *, float_file: Path, checkpoint: Path, images: Path, out: Path) -> Cost:
    """Quantizes with one tool in a new process.

    Args:
        tool: a key of `PEERS`.
        float_file: the float ONNX file; our export, or torch's own for a peer that takes that.
        checkpoint: the same network as a checkpoint folder.
        images: an .npy file, uint8 `[N, C, H, W]`.
        out: the ONNX file to write.

    Raises:
        RuntimeError: the tool cannot be installed, or failed; says why in one line.
    """
    peer = PEERS[tool]
    python = Path(sys.executable) if peer.environment is None else _environment(peer)
    paths = [checkpoint if peer.takes_checkpoint else float_file, images, out]
    # Some leave files in the working folder.
    _run([python, Path(__file__), tool, *map(Path.resolve, paths)], "failed", cwd=out.parent)
    return Cost(**json.loads(_report_path(out).read_text(encoding="utf-8")))


def _environment(peer: Peer) -> Path:
    """Returns the Python of a tool's own environment, made if it is not there yet."""
    folder = Path(__file__).parent / str(peer.environment)
    python, wanted = folder / "bin" / "python", " ".join(peer.requirements)
    ready = folder / READY
    if not (ready.is_file() and ready.read_text(encoding="utf-8") == wanted):
        beside = Path(sys.executable).with_name("uv")
        uv = str(beside) if beside.is_file() else shutil.which("uv")
        if uv is None:
            raise RuntimeError("not installed: there is no uv to make its environment with")
        problem = "cannot be installed"
        # uv puts a .gitignore into the folder
        _run([uv, "venv", "--clear", "--python", sys.executable, folder], problem)
        _run([uv, "pip", "install", "--python", python, *peer.requirements], problem)
        ready.write_text(wanted, encoding="utf-8")
    return python


def _run(command: list[str | Path], problem: str, cwd: Path | None = None) -> None:
    """Runs a command quietly.

    Raises:
        RuntimeError: it failed; the message is `problem` and the last line it wrote.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode < 0:
        raise RuntimeError(f"{problem}: ended by {signal.Signals(-done.returncode).name}")
    if done.returncode > 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"{problem}: {lines[-1] if lines else f'status {done.returncode}'}")


def _report_path(out: Path) -> Path:
    return out.with_suffix(".json")


def _prepare_compress(**corrections: bool) -> Callable[[Path, np.ndarray, Path], Job]:
    """Returns the function for our defaults, with the given corrections."""

    def prepare(source: Path, images: np.ndarray, out: Path) -> Job:
        import torch
        import torch._dynamo  # torch.onnx.export imports these two when it is called
        import torch.onnx._internal.exporter._core

        from compress.architectures.build import Classifier
        from compress.checkpoint import load_checkpoint
        from compress.int8.conversion import convert
        from compress.int8.lowering import lower
        from compress.int8.ptq import CALIBRATION_BATCH, Calibration, fit_to_cpu
        from compress.int8.restore import load_model
        from compress.onnx_file import export_onnx
        from compress.quantize.calibration import plan_of
        from compress.quantize.config import QuantizeConfig

        checkpoint = load_checkpoint(source)
        model = load_model(checkpoint)
        assert isinstance(model, Classifier)
        tensors = torch.from_numpy(images)
        plan = dataclasses.replace(plan_of(QuantizeConfig()), **corrections)  # type: ignore[arg-type]

        def quantize() -> None:
            calibration = Calibration(lower(model), lambda: tensors.split(CALIBRATION_BATCH))
            quantized = convert(calibration.quantize(fit_to_cpu(plan, calibration)))
            export_onnx(quantized, checkpoint.spec, out, digest="", stage="quantize")

        return quantize

    return prepare


def _prepare_quantize_static(method: str) -> Callable[[Path, np.ndarray, Path], Job]:
    """Returns the function for one of ONNX Runtime's `CalibrationMethod`s."""

    def prepare(source: Path, images: np.ndarray, out: Path) -> Job:
        import onnxruntime.tools.symbolic_shape_infer  # noqa: F401 -- a late import of seconds
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quant_pre_process,
            quantize_static,
        )

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.batches = _batches(images)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.batches, None)

        prepared = out.with_name(f"{out.stem}-prepared.onnx")

        def quantize() -> None:
            quant_pre_process(source, prepared)
            quantize_static(
                prepared,
                out,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
            )

        return quantize

    return prepare


def _prepare_nncf(source: Path, images: np.ndarray, out: Path) -> Job:
    import nncf  # type: ignore[import-not-found]
    import nncf.onnx.quantization.quantize_model  # type: ignore[import-not-found]
    import onnx

    model = onnx.load(source)
    # Its default ranges are averages over the items: single images, as in its own examples.
    dataset = nncf.Dataset([{INPUT: image[None]} for image in images])

    def quantize() -> None:
        quantized = nncf.quantize(
            model,
            dataset,
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(images),
        )
        onnx.save(quantized, out)

    return quantize


def _prepare_aimet(source: Path, images: np.ndarray, out: Path) -> Job:
    import onnx
    from aimet_onnx import QuantizationSimModel  # type: ignore[import-not-found]
    from aimet_onnx.batch_norm_fold import (  # type: ignore[import-not-found]
        fold_all_batch_norms_to_weight,
    )
    from aimet_onnx.common.quantsim_config.utils import (  # type: ignore[import-not-found]
        get_path_for_per_channel_config,
    )

    model = onnx.load(source)

    def quantize() -> None:
        fold_all_batch_norms_to_weight(model)
        simulation = QuantizationSimModel(model, config_file=get_path_for_per_channel_config())
        simulation.compute_encodings(_batches(images))
        # Integer weights and biases: without them ONNX Runtime would keep the layers in float.
        onnx.save(simulation.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), out)

    return quantize


def _batches(images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(images), BATCH):
        yield {INPUT: images[start : start + BATCH]}


PEERS = {
    "compress": Peer(prepare=_prepare_compress(), package="compress", takes_checkpoint=True),
    "compress with corrected biases": Peer(
        prepare=_prepare_compress(bias_correction=True), package="compress", takes_checkpoint=True
    ),
    "quantize_static MinMax": Peer(
        prepare=_prepare_quantize_static("MinMax"), package="onnxruntime"
    ),
    "quantize_static MinMax on torch's own export": Peer(
        prepare=_prepare_quantize_static("MinMax"), package="onnxruntime", takes_plain_export=True
    ),
    "quantize_static Entropy": Peer(
        prepare=_prepare_quantize_static("Entropy"), package="onnxruntime"
    ),
    "quantize_static Percentile": Peer(
        prepare=_prepare_quantize_static("Percentile"), package="onnxruntime"
    ),
    "NNCF": Peer(
        prepare=_prepare_nncf,
        package="nncf",
        environment=".nncf",
        requirements=("nncf==3.4.0", "onnx", "onnxruntime", "numpy"),
    ),
    "AIMET-ONNX": Peer(
        prepare=_prepare_aimet,
        package="aimet-onnx",
        environment=".aimet",
        requirements=("aimet-onnx==2.42.0",),
    ),
}


def _main(tool: str, source: str, images: str, out: str) -> None:
    """Quantizes, and writes the cost beside the file."""
    peer = PEERS[tool]
    job = peer.prepare(Path(source), np.load(images), Path(out))
    Path("/proc/self/clear_refs").write_bytes(b"5")  # the peak starts anew from here
    before = _peak_kib()
    start = time.perf_counter()
    job()
    cost = Cost(
        seconds=time.perf_counter() - start,
        memory_mb=(_peak_kib() - before) * 1024 / 1e6,
        version=version(peer.package),
    )
    _report_path(Path(out)).write_text(json.dumps(asdict(cost)), encoding="utf-8")


def _peak_kib() -> int:
    """Returns this process's highest resident memory since it was last cleared (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _main(*sys.argv[1:])
