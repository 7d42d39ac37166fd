"""Class-activation maps of ONNX files (Zhou et al., arXiv 1512.04150).

For a network that ends in global average pooling and a linear layer, the logit of a class is the
mean of its map over the image, plus a bias: `map = sum_k weight[class, k] features[k]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F

from compress.host import allowed_cores
from compress.insights.results import MapExample, Maps
from compress.insights.thumbnails import thumbnail
from compress.measure.runtime import open_session, run_file
from compress.onnx_file import INPUT, OUTPUT

LARGEST_ERROR = 0.05
"""Of the logits computed from the maps, relative to their deviation; int8 rounds the pooled
features."""
EXAMPLES = 12
HISTOGRAM_BINS = 10


@dataclass(frozen=True, kw_only=True)
class MappedFile:
    """An ONNX file that also returns its last feature maps."""

    session: ort.InferenceSession
    outputs: tuple[str, ...]
    """Names of logits, feature maps, and weights; logits only for other architectures."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns the logits `[N, classes]` of images, uint8 `[N, C, H, W]`."""
        (logits,) = run_file(self.session, {INPUT: images}, [OUTPUT])
        assert isinstance(logits, np.ndarray)
        return logits

    def run(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns logits `[N, classes]` and the maps of the labels `[N, h, w]`, if there are any.

        Images are uint8 `[N, C, H, W]`.
        """
        logits, *others = run_file(self.session, {INPUT: images}, list(self.outputs))
        if not others:
            return logits, None
        features, weight = others
        if weight.shape != (logits.shape[1], features.shape[1]):
            return logits, None
        expected = features.mean((2, 3)) @ weight.T
        offset = logits - expected
        error = np.abs(offset - offset.mean(0)).mean()
        if error > LARGEST_ERROR * logits.std():  # something else stands between
            return logits, None
        return logits, np.einsum("nkhw,nk->nhw", features, weight[labels])


def open_mapped(path: Path, *, maps: bool) -> MappedFile:
    """Opens a file; with `maps`, its last pooled features and weights become outputs, if any."""
    proto = onnx.load(path)
    names = _features_and_weight(proto.graph) if maps else ()
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(proto.SerializeToString(), threads=allowed_cores())
    return MappedFile(session=session, outputs=(OUTPUT, *names))


def _features_and_weight(graph: onnx.GraphProto) -> tuple[str, ...]:
    pooled = [node.input[0] for node in graph.node if node.op_type == "GlobalAveragePool"]
    weights = [
        node.input[1]
        for node in graph.node
        if node.op_type == "Gemm" and list(node.output) == [OUTPUT]
    ]
    return (pooled[-1], weights[-1]) if pooled and weights else ()


def shares(maps: np.ndarray, side: int) -> np.ndarray:
    """Returns positive maps `[N, side, side]` that sum to 1, from those of any size."""
    positive = torch.from_numpy(maps).clamp(min=0)[:, None].float()
    large = F.interpolate(positive, size=side, mode="bilinear", align_corners=False)[:, 0]
    total = large.sum((1, 2), keepdim=True)
    even = torch.full_like(large, 1 / side**2)
    return torch.where(total > 0, large / total.clamp(min=1e-12), even).numpy()


def compare_maps(
    teacher: np.ndarray,
    shipped: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str],
    images: np.ndarray,
) -> Maps:
    """Returns how much of their maps two networks share.

    Args:
        teacher: maps of the labels `[N, h, w]`.
        shipped: the same of the shipped file, of any size.
        labels: int `[N]`.
        names: of the classes.
        images: the first images, uint8 `[n, C, H, W]`; examples are chosen from them.
    """
    side = max(teacher.shape[-1], shipped.shape[-1])
    both = shares(teacher, side), shares(shipped, side)
    overlap = np.clip(100 * np.minimum(*both).sum((1, 2)), 0, 100)
    chosen = _one_of_each_class(labels[: len(images)])
    return Maps(
        n_images=len(labels),
        overlap=float(np.median(overlap)),
        histogram=tuple(int(count) for count in np.histogram(overlap, HISTOGRAM_BINS, (0, 100))[0]),
        examples=tuple(
            MapExample(
                index=index,
                label=names[labels[index]],
                image=thumbnail(images[index]),
                teacher=thumbnail(images[index], both[0][index] / both[0][index].max()),
                shipped=thumbnail(images[index], both[1][index] / both[1][index].max()),
                overlap=float(overlap[index]),
            )
            for index in chosen
        ),
    )


def _one_of_each_class(labels: np.ndarray) -> list[int]:
    _, first = np.unique(labels, return_index=True)
    return [int(index) for index in first[:EXAMPLES]]
