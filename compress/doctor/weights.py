"""Checks of weights: values, shapes, copies."""

import hashlib
from collections.abc import Iterator

import numpy as np

from compress.doctor.finding import Check, Fault
from compress.doctor.model import Model
from compress.log import count_of

MIN_COPY = 1024
"""Bytes of a copy worth reporting."""
BLOCK = 4
"""ONNX Runtime's fast kernels need a multiple of this many channels."""
EXPONENT, MANTISSA = np.uint32(0x7F800000), np.uint32(0x007FFFFF)
"""Their bits in a float32."""
TINY = np.finfo(np.float32).tiny
"""The smallest float32 that is not denormal."""
IMAGE_CHANNELS = 4
"""Up to so many, ONNX Runtime has a kernel of its own."""


def not_finite(model: Model) -> Iterator[Fault]:
    """Finds layers with weights or biases that are infinite or not a number."""
    found = [
        layer.name
        for layer in model.layers
        if not all(
            np.isfinite(values).all() for values in (layer.weight, layer.bias) if values is not None
        )
    ]
    if found:
        yield Fault(
            what=f"{count_of(len(found), 'layer')} with weights that are not finite",
            where=tuple(found),
        )


def denormals(model: Model) -> Iterator[Fault]:
    """Finds float32 constants with denormal numbers.

    By their bits: the process may treat them as zeros, as training does.
    """
    counts: dict[str, int] = {}
    for name in model.file.constants:
        values = model.file.array(name)
        if values is not None and values.dtype == np.float32:
            bits = np.ascontiguousarray(values).view(np.uint32)
            count = int((((bits & EXPONENT) == 0) & ((bits & MANTISSA) != 0)).sum())
            if count:
                counts[name] = count
    if counts:
        yield Fault(what=count_of(sum(counts.values()), "denormal weight"), where=tuple(counts))


def dead_channels(model: Model) -> Iterator[Fault]:
    """Finds layers with output channels whose weights are all zero."""
    dead: dict[str, int] = {}
    channels = 0
    for layer in model.layers:
        flat = layer.weight.reshape(len(layer.weight), -1)
        channels += len(flat)
        count = int((np.abs(flat) < TINY).all(axis=1).sum())
        if count:
            dead[layer.name] = count
    if dead:
        what = f"{sum(dead.values()):,} of {channels:,} output channels have only zero weights"
        yield Fault(what=what, where=tuple(dead))


def misaligned_channels(model: Model) -> Iterator[Fault]:
    """Finds convolutions whose numbers of channels keep them out of the fast kernels.

    Those on one position, as in squeeze-and-excitation, cost next to nothing.
    """
    found: dict[str, set[int]] = {}
    for layer in model.layers:
        read, written = layer.channels
        counts = {written} if read <= IMAGE_CHANNELS else {read, written}
        off = {count for count in counts if count % BLOCK}
        if layer.kind == "Conv" and layer.positions != 1 and off:
            found[layer.name] = off
    if found:
        numbers = ", ".join(map(str, sorted(set().union(*found.values()))))
        what = f"{count_of(len(found), 'convolution')} with {numbers} channels"
        yield Fault(what=what, where=tuple(found))


def copies(model: Model) -> Iterator[Fault]:
    """Finds constants that are stored more than once."""
    names: dict[tuple[int, tuple[int, ...], bytes], list[str]] = {}
    wasted = 0
    for tensor in model.proto.graph.initializer:
        values = model.file.array(tensor.name)
        if values is not None and values.nbytes >= MIN_COPY:
            key = (tensor.data_type, values.shape, hashlib.sha256(values.tobytes()).digest())
            wasted += values.nbytes if key in names else 0
            names.setdefault(key, []).append(tensor.name)
    extra = tuple(name for same in names.values() for name in same[1:])
    if extra:
        yield Fault(what=f"{wasted:,} bytes are copies of other constants", where=extra)


WEIGHT_CHECKS = (
    Check(
        name="not-finite",
        severity="error",
        subject="weights that are infinite or not a number",
        why="they spread to every result",
        upstream=(),
        fix="train again with a lower learning rate, or take an earlier checkpoint",
        find=not_finite,
    ),
    Check(
        name="denormals",
        severity="warning",
        subject="denormal weights (smaller than 1.2e-38)",
        why="CPUs multiply them many times slower",
        upstream=("microsoft/onnxruntime#6865", "pytorch/pytorch#19651"),
        fix="replace them with zeros, or set session.set_denormal_as_zero in the session options",
        find=denormals,
    ),
    Check(
        name="dead-channels",
        severity="warning",
        subject="output channels with only zero weights",
        why="their output is constant, yet they are computed, stored, and read by the next layer",
        upstream=("tensorflow/tensorflow#22732", "he-y/soft-filter-pruning#12"),
        fix="remove them and add what they pass on to the next layer's bias: structured pruning",
        find=dead_channels,
    ),
    Check(
        name="misaligned-channels",
        severity="warning",
        subject=f"convolutions with a number of channels that is no multiple of {BLOCK}",
        why="ONNX Runtime computes them with slower kernels: depthwise ones in float, all in int8",
        upstream=("microsoft/onnxruntime#14392", "VainF/Torch-Pruning#38"),
        fix="choose widths that are multiples of 8, better 16, and prune to such",
        find=misaligned_channels,
    ),
    Check(
        name="duplicate-weights",
        severity="warning",
        subject=f"equal constants of {MIN_COPY} bytes or more stored more than once",
        why="they make the file larger than it need be",
        upstream=("pytorch/pytorch#108342", "onnx/ir-py#67"),
        fix="let the nodes read one of them: onnx_ir.passes.common.DeduplicateInitializersPass",
        find=copies,
    ),
)
