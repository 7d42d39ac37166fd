"""Networks to quantize, and what ONNX Runtime does with them."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import nn

from compress.architectures.build import Classifier, build
from compress.architectures.resize import remove_blocks
from compress.architectures.spec import ModelSpec
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.int8.conversion import convert
from compress.int8.graph import layers_of
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan, fit_to_cpu
from compress.onnx_file import export_onnx
from compress.prune.batchnorm import reestimate_batchnorm
from tests.conftest import student_spec

PLAN = Plan(observer="minmax", weights="max")


def optimized_operators(path: Path, tmp_path: Path) -> Counter[str]:
    """Counts the operators of the graph that ONNX Runtime optimized."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def calibration(model: Classifier, data: Data, n: int = 256) -> Calibration:
    """The first `n` training images."""
    order = torch.arange(n)
    return Calibration(
        lower(model), lambda: (b.images for b in data.train.batches(32, order=order))
    )


def quantized_file(
    model: Classifier, spec: ModelSpec, data: Data, folder: Path, plan: Plan = PLAN
) -> tuple[nn.Module, Path]:
    found = calibration(model, data)
    quantized = convert(found.quantize(fit_to_cpu(plan, found)))
    path = folder / "int8.onnx"
    export_onnx(quantized, spec, path, digest="", stage="quantize")
    return quantized, path


def run_file(path: Path, images: torch.Tensor) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return np.asarray(logits)


MOBILENET_REPEATS = tuple(f"features.{number}" for number in (3, 5, 6, 8, 10, 11))
"""Residual blocks of MobileNetV3-Small; without them it has one block of each width."""


def briefly_trained(spec: ModelSpec, data: Data, removed: Sequence[str] = ()) -> Classifier:
    """A network that recognizes most digits; random logits have no meaningful top-1."""
    torch.manual_seed(0)
    model = build(spec).train()
    remove_blocks(model.network, removed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        order = torch.randint(len(data.train), (64,))
        batch = next(iter(data.train.batches(64, order=order)))
        loss = F.cross_entropy(model(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reestimate_batchnorm(model, data.train)
    return model.eval()


@functools.cache
def trained_student() -> tuple[Classifier, Calibration]:
    """A briefly trained network and its calibration, shared between tests; not to be changed."""
    data = load_data("digits", DataConfig(), seed=0)
    model = briefly_trained(student_spec(data), data)
    return model, calibration(model, data)


def coarse_plan(found: Calibration) -> Plan:
    """7-bit weights everywhere, which leave something to correct."""
    names = frozenset(layers_of(found.lowered(equalized=False)))
    return dataclasses.replace(PLAN, reduced_layers=names)


def output_errors(network: nn.Module, reference: nn.Module, data: Data) -> torch.Tensor:
    """Differences between the logits of two networks, `[300, classes]`."""
    images = next(iter(data.train.batches(300))).images
    with torch.no_grad():
        difference: torch.Tensor = network(images) - reference(images)
    return difference
