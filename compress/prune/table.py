"""Times layers separately in ONNX Runtime, at several widths; cached per machine."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.cache import Measurement, cached_measurements, spread_of
from compress.int8.layer_profile import LAYER_OPERATORS, original_name
from compress.log import track
from compress.measure.profile import profile
from compress.onnx_file import OPSET
from compress.prune.config import Precision
from compress.prune.latency import ALIGNED, HALF_ALIGNED, LayerCurve, LayerShape

GRID_SHARES = (0.25, 0.5, 0.75, 1.0)
NARROW = 64
"""Layers of up to this many channels are measured at every multiple of 8."""
AT_ONCE = 8
"""Layers timed in one file."""
REPEATS = 2


def measure_layers(
    shapes: Mapping[str, LayerShape],
    unpruned: Mapping[str, tuple[int, int]],
    varying: Mapping[str, tuple[bool, bool]],
    *,
    precision: Precision,
    threads: int,
) -> dict[str, LayerCurve]:
    """Times every layer at several widths, except for cached ones.

    `unpruned` are a layer's input and output channels, `varying` whether pruning can change each.
    """
    grids = {name: _grids(shape, unpruned[name], varying[name]) for name, shape in shapes.items()}
    points = {
        _key(shape, pair): (shape, pair)
        for name, shape in shapes.items()
        for pairs in _points(*grids[name])
        for pair in pairs
    }

    def measure(missing: Sequence[str]) -> dict[str, Measurement[float]]:
        wanted: dict[LayerShape, list[tuple[int, int]]] = defaultdict(list)
        for shape, pair in sorted((points[key] for key in missing), key=lambda point: point[1]):
            wanted[shape].append(pair)
        measured: dict[str, Measurement[float]] = {}
        for shape in track(list(wanted), "timing layers at several widths", total=len(wanted)):
            for start in range(0, len(wanted[shape]), AT_ONCE):
                pairs = wanted[shape][start : start + AT_ONCE]
                times = _time(shape, pairs, precision, threads)
                measured |= {_key(shape, pair): ms for pair, ms in zip(pairs, times, strict=True)}
        return measured

    facts = {"precision": precision, "threads": threads}
    ms = cached_measurements(float, "layer latencies", facts, points, measure)
    return {name: _curve(ms, shapes[name], *grids[name]) for name in shapes}


def _grids(
    shape: LayerShape, unpruned: tuple[int, int], varying: tuple[bool, bool]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the input and output channels to measure at."""
    ins, outs = (
        _grid(width, max(shape.groups, 1)) if varies else (width,)
        for width, varies in zip(unpruned, varying, strict=True)
    )
    return ((unpruned[0],), outs) if shape.is_depthwise else (ins, outs)


def _grid(unpruned: int, groups: int) -> tuple[int, ...]:
    """Returns the widths to measure: all multiples of 8 for narrow layers, a few for wide ones."""
    step = math.lcm(HALF_ALIGNED if unpruned <= NARROW else ALIGNED, groups)
    if unpruned <= NARROW:
        return (*range(step, unpruned, step), unpruned)
    rounded = {max(step, round(unpruned * share / step) * step) for share in GRID_SHARES}
    return tuple(sorted({width for width in rounded if width < unpruned} | {step, unpruned}))


def _points(
    ins: Sequence[int], outs: Sequence[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns the channel pairs of the grid, and those that show the savings of half a step."""
    return (
        list(product(ins, outs)),
        [(width, outs[-1]) for width in _half_steps(ins)],
        [(ins[-1], width) for width in _half_steps(outs)],
    )


def _half_steps(grid: Sequence[int]) -> list[int]:
    """Returns triples of widths: an odd multiple of 8 between its aligned neighbors."""
    if len(grid) == 1:
        return []
    middles = range(ALIGNED + HALF_ALIGNED, grid[-1], ALIGNED)
    if grid[-1] > NARROW:
        middles = middles[len(middles) // 2 : len(middles) // 2 + 1]
    triples = ((at - HALF_ALIGNED, at, at + HALF_ALIGNED) for at in middles)
    return [width for triple in triples if triple[-1] <= grid[-1] for width in triple]


def _curve(
    ms: Mapping[str, float], shape: LayerShape, ins: Sequence[int], outs: Sequence[int]
) -> LayerCurve:
    _, *sides = _points(ins, outs)
    halves = []
    for pairs in sides:
        times = [ms[_key(shape, pair)] for pair in pairs]
        low, middle, high = (sum(times[start::3]) for start in range(3))
        halves.append(min(1.0, (high - middle) / (high - low)) if high > low else 0.0)
    return LayerCurve(
        in_channels=tuple(ins),
        out_channels=tuple(outs),
        ms=tuple(tuple(ms[_key(shape, (i, o))] for o in outs) for i in ins),
        half_in=halves[0],
        half_out=halves[1],
    )


def _time(
    shape: LayerShape, pairs: Sequence[tuple[int, int]], precision: Precision, threads: int
) -> list[Measurement[float]]:
    """Times layers of one shape, all in one file; milliseconds."""
    rounds = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        onnx.save(_layers_file(shape, pairs, precision), path)
        for _ in range(REPEATS):
            operators = profile(path, threads=threads)
            ms = {
                original_name(item.name): item.ms
                for item in operators
                if item.kind in LAYER_OPERATORS
            }
            rounds.append([ms[f"y{number}"] for number in range(len(pairs))])
    # Spread of the sums: a single layer takes only a few ticks of the profiler.
    spread = spread_of([sum(times) for times in rounds])
    return [Measurement(value=min(times), spread=spread) for times in zip(*rounds, strict=True)]


def _key(shape: LayerShape, pair: tuple[int, int]) -> str:
    facts = asdict(shape)
    return " ".join(f"{name}={value}" for name, value in facts.items()) + f" {pair[0]}->{pair[1]}"


def _layers_file(
    shape: LayerShape, pairs: Sequence[tuple[int, int]], precision: Precision
) -> onnx.ModelProto:
    """Returns a model with one independent layer per pair of channels."""
    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    inputs, outputs = [], []
    constants: dict[str, Any] = {"scale": np.float32(0.02), "zero": np.uint8(128)}
    kind = TensorProto.UINT8 if precision == "int8" else TensorProto.FLOAT
    for number, (ins, outs) in enumerate(pairs):
        x, y, w, b = (f"{letter}{number}" for letter in "xywb")
        ins = outs if shape.is_depthwise else ins  # noqa: PLW2901 -- they are equal
        operator, attributes, weight_shape = _layer(shape, ins, outs)
        image = (1, ins, *shape.size) if shape.is_convolution else (shape.size[0], ins)
        inputs.append(helper.make_tensor_value_info(x, kind, image))
        outputs.append(helper.make_tensor_value_info(y, kind, None))
        weight = generator.integers(-127, 128, weight_shape)
        if precision == "float":
            constants |= {w: weight.astype(np.float32), b: np.zeros(outs, np.float32)}
            nodes.append(helper.make_node(operator, [x, w, b], [y], name=y, **attributes))
            continue
        constants |= {
            w: weight.astype(np.int8),
            b: np.zeros(outs, np.int32),
            f"{w}_scale": np.full(outs, 1e-3, np.float32),
            f"{w}_zero": np.zeros(outs, np.int8),  # without it, Gemm stays float
            f"{b}_scale": np.full(outs, 2e-5, np.float32),
        }
        reads = {x: ["scale", "zero"], w: [f"{w}_scale", f"{w}_zero"], b: [f"{b}_scale"]}
        for value, affine in reads.items():
            axis: dict[str, Any] = {} if value == x else {"axis": 0}
            floats = [f"{value}_float"]
            nodes.append(helper.make_node("DequantizeLinear", [value, *affine], floats, **axis))
        values = [f"{value}_float" for value in reads]
        nodes += [
            helper.make_node(operator, values, [f"{y}_float"], name=y, **attributes),
            helper.make_node("QuantizeLinear", [f"{y}_float", "scale", "zero"], [y]),
        ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _layer(shape: LayerShape, ins: int, outs: int) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """Returns a layer's ONNX operator, attributes, and weight shape."""
    if not shape.is_convolution:
        return "Gemm", {"transB": 1}, (outs, ins)
    groups = outs if shape.is_depthwise else shape.groups
    attributes = {
        "strides": shape.stride,
        "dilations": shape.dilation,
        "pads": (*shape.padding, *shape.padding),
        "group": groups,
    }
    return "Conv", attributes, (outs, ins // groups, *shape.kernel)
