import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.checkpoint import QuantizedLayout
from compress.data.dataset import Data
from compress.int8.graph import layers_of, quantizers_of
from compress.quantize.stage import enable_learned_scales
from compress.train.config import TrainConfig
from compress.train.epoch import label_loss
from compress.train.loop import train
from tests.int8.helpers import PLAN, trained_student


def test_qat_learns_weights_and_scales(digits: Data, tmp_path: Path) -> None:
    _, found = trained_student()
    model = found.quantize(PLAN)
    enable_learned_scales(model)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    scales = {name for name in before if name.endswith("scale")}
    assert len(scales) == len(quantizers_of(model)) + len(layers_of(model))
    config = TrainConfig(epochs=1, min_steps=0, batch_size=64, lr=0.003, precision="fp32")
    train(model, digits, config, loss=label_loss(0.0), seed=0, folder=tmp_path, title="qat")
    after = dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved >= before.keys() - scales
    assert len(moved & scales) > 0.9 * len(scales)


def test_layers_in_float_have_no_scale_to_learn() -> None:
    _, found = trained_student()
    name = next(iter(layers_of(found.lowered(equalized=False))))
    layout = QuantizedLayout(float_layers=(name,))
    model = found.quantize(dataclasses.replace(PLAN, layout=layout))
    enable_learned_scales(model)
    assert not hasattr(layers_of(model)[name], "weight_scale")
    others = [layer for other, layer in layers_of(model).items() if other != name]
    assert all(layer.weight_scale.requires_grad for layer in others)


DDP = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from compress.checkpoint import load_checkpoint
from compress.int8.conversion import convert
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from compress.quantize.stage import enable_learned_scales
from compress.int8.restore import load_model
from compress.run.single_stage import data_of
from compress.train.config import TrainConfig
from compress.train.epoch import label_loss
from compress.train.loop import train
dist.init_process_group("gloo")
checkpoint = load_checkpoint(Path(sys.argv[1]))
data = data_of(checkpoint)
calibration = Calibration(
    lower(load_model(checkpoint)), lambda: (b.images for b in data.train.batches(64))
)
quantized = calibration.quantize(Plan(observer="minmax", weights="mse"))
enable_learned_scales(quantized)
folder = Path(sys.argv[2])
config = TrainConfig(
    epochs=int(sys.argv[3]), min_steps=0, batch_size=64, lr=0.003, precision="fp32"
)
history = train(
    quantized, data, config, loss=label_loss(0.0), seed=0, folder=folder, title="qat"
)
digest = sum(float(p.double().sum()) for p in quantized.parameters())
sums = [None] * dist.get_world_size()
dist.all_gather_object(sums, digest)
if dist.get_rank() == 0:
    assert len(sums) == 2 and sums[0] == sums[1], sums
    from compress.onnx_file import export_onnx
    model = convert(quantized)
    export_onnx(model, checkpoint.spec, folder / "qat.onnx", digest="", stage="quantize")
    print("epochs", len(history), "top1", history[-1].validation_top1)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_qat_trains_in_two_processes_resumes_and_exports(
    finished_run: Path, tmp_path: Path
) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(DDP)

    def torchrun(epochs: int) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        arguments = [str(script), str(finished_run / "2-prune"), str(tmp_path), str(epochs)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "epochs 2" in torchrun(2)
    rows = (tmp_path / "history.jsonl").read_text()
    assert "epochs 3" in torchrun(3)  # goes on after the second
    assert (tmp_path / "history.jsonl").read_text().startswith(rows)
    assert (tmp_path / "qat.onnx").is_file()
