"""Checkpoints: folders with tensors, a JSON description, and a lineage; never a pickle.

A stage starts from a `Checkpoint`, or from a `NewNetwork`, and returns a `Product`, which becomes
the next checkpoint.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.architectures.spec import ModelSpec
from compress.errors import CheckpointError
from compress.files import (
    atomic_write,
    file_digest,
    parse_json,
    read_text,
    to_json,
    write_json,
)
from compress.settings import FileName

FORMAT = 5
TENSORS, DESCRIPTION = "model.safetensors", "checkpoint.json"
MODEL_FILE = "model.onnx"
"""The network, exported and measured."""
FLOAT_FILE, INT8_FILE = "model-float.onnx", "model-int8.onnx"
"""Files of the export stage, instead of `model.onnx`."""
REPORT_JSON, REPORT_MD, REPORT_HTML = "report.json", "report.md", "report.html"
HISTORY = "history.jsonl"
"""One row per epoch, if the stage trained."""
IDENTITY = ("format", "spec", "shapes", "removed", "quantized", "tensors")
"""Fields that identify the network, regardless of how it was made."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage in the lineage of a checkpoint."""

    stage: str
    key: str
    """Hash of everything that determines the result; with the same key, the stage is not rerun."""
    config: Mapping[str, Any]
    card: Mapping[str, Any] | None
    """The model card, if the networks come from one."""
    seed: Annotated[int, Field(ge=0)]
    parent: str | None
    """Digest of the checkpoint that it started from."""
    data: FileName
    """The dataset's name, as the user gave it."""
    data_config: Mapping[str, Any]
    data_fingerprint: str
    split_fingerprint: str
    """Identifies the training images; see `Data.split_fingerprint`."""
    measure: Mapping[str, int]
    """Latency settings if the result depends on latency; else empty."""
    environment: Mapping[str, str]
    """Library versions, threads, and device, which affect the results slightly."""


@dataclass(frozen=True, kw_only=True)
class QuantizedLayout:
    """Where an int8 network has its quantizers."""

    float_layers: tuple[str, ...] = ()
    """Names of the layers left in float."""


ALL_INT8 = QuantizedLayout()


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of `checkpoint.json`."""

    format: int = FORMAT
    stage: str
    spec: ModelSpec
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of pruned tensors of the float network."""
    removed: tuple[str, ...] = ()
    """Residual blocks removed from the float network."""
    quantized: QuantizedLayout | None = None
    """Quantizer layout; None for a float network."""
    lineage: tuple[Step, ...]
    tensors: str
    """SHA-256 of the tensors file."""
    checksum: str = ""
    """SHA-256 of the rest of this file."""

    def __post_init__(self) -> None:
        if not self.stage.isidentifier():  # it becomes part of a path
            raise CheckpointError(f"stage must be a name, got {self.stage!r}")

    @property
    def step(self) -> Step:
        """The stage that made it.

        Raises:
            CheckpointError: the lineage is empty.
        """
        if not self.lineage:
            raise CheckpointError("the checkpoint has an empty lineage; use one written by a stage")
        return self.lineage[-1]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk, verified."""

    folder: Path
    description: Description

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return self.description.stage

    @property
    def spec(self) -> ModelSpec:
        """The network it contains."""
        return self.description.spec

    @property
    def digest(self) -> str:
        """SHA-256 of the network: its identity.

        Covers tensors, architecture, arguments, stem, activation, user code, preprocessing,
        classes, widths, and quantized layout, but not the lineage.
        """
        facts = dataclasses.asdict(self.description)
        return _json_digest({name: facts[name] for name in IDENTITY})

    @property
    def key(self) -> str:
        """Key of the stage that made it."""
        return self.description.step.key


@dataclass(frozen=True, kw_only=True)
class NewNetwork:
    """A network that a stage builds, where it does not start from a checkpoint."""

    spec: ModelSpec
    weights: str = ""
    """Initial weights, see `load_weights`; empty for random ones."""


Start = Checkpoint | NewNetwork


@dataclass(frozen=True, kw_only=True)
class Product:
    """The outcome of a stage, which the runner saves, exports, and measures."""

    model: nn.Module
    """Maps uint8 images `[N, C, H, W]` to logits `[N, classes]`; on the CPU."""
    spec: ModelSpec
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """See `Description.shapes`."""
    removed: tuple[str, ...] = ()
    """See `Description.removed`."""
    quantized: QuantizedLayout | None = None
    """See `Description.quantized`."""
    result: object
    """The stage's own results: an instance of the `result` type in the table of stages."""
    findings: tuple[str, ...] = ()
    """Problems to report."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Entries of the ONNX file's metadata, beside those of all files."""
    onnx_file: str | None = None
    """Name of the ONNX file that the stage wrote; None: the runner exports the model."""


def write_checkpoint(
    folder: Path, product: Product, *, stage: str, lineage: tuple[Step, ...]
) -> Checkpoint:
    """Writes a product's tensors and description into a stage's working folder."""
    state = product.model.state_dict()
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(folder / TENSORS) as partial:
        save_file(packed, partial)
    description = Description(
        stage=stage,
        spec=product.spec,
        shapes=dict(product.shapes),
        removed=product.removed,
        quantized=product.quantized,
        lineage=lineage,
        tensors=file_digest(folder / TENSORS),
    )
    checksum = _checksum(json.loads(to_json(description)))
    description = dataclasses.replace(description, checksum=checksum)
    write_json(folder / DESCRIPTION, description)
    return Checkpoint(folder=folder, description=description)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, truncated, or of another format version.
    """
    path = folder / DESCRIPTION
    if not folder.exists():
        raise CheckpointError(f"{folder} is not a checkpoint: the folder does not exist")
    if not path.is_file():
        stages = sorted(found.parent.name for found in folder.glob(f"[0-9]-*/{DESCRIPTION}"))
        hint = f"; it is a run: choose one of its stages: {', '.join(stages)}" if stages else ""
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {DESCRIPTION}{hint}")
    try:
        raw = parse_json(read_text(path))
        found = raw.get("format") if isinstance(raw, dict) else None
        other = isinstance(found, int) and found != FORMAT
        description = None if other else TypeAdapter(Description).validate_python(raw)
    except ValueError:  # CompressError and pydantic's own
        other, description = False, None
    if other:
        raise CheckpointError(
            f"{folder} has checkpoint format {found}, but this program reads {FORMAT}; run "
            "the stage again"
        )
    if description is None or description.checksum != _checksum(raw):
        raise CheckpointError(f"{path} is damaged or was edited; run the stage again")
    tensors = folder / TENSORS
    if not tensors.is_file() or file_digest(tensors) != description.tensors:
        raise CheckpointError(
            f"{tensors} is missing, truncated, or changed: its checksum differs from "
            f"{DESCRIPTION}; run the stage again"
        )
    return Checkpoint(folder=folder, description=description)


def read_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the checkpoint's tensors, reading only the file's header.

    Raises:
        CheckpointError: they cannot be read.
    """
    with _readable(checkpoint.folder / TENSORS) as path, safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Returns the checkpoint's tensors by name, on the CPU.

    Raises:
        CheckpointError: they cannot be read.
    """
    with _readable(checkpoint.folder / TENSORS) as path:
        return load_file(path)


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Turns errors of safetensors about a file into CheckpointError."""
    try:
        yield path
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); run the stage again") from None


def find_origin(checkpoint: Checkpoint) -> Checkpoint | None:
    """Returns the checkpoint that one was made from, if it is still in the same run."""
    wanted = checkpoint.description.step.parent
    for path in sorted(checkpoint.folder.parent.glob(f"[0-9]-*/{DESCRIPTION}")):
        if path.parent == checkpoint.folder:
            continue
        try:
            other = load_checkpoint(path.parent)
        except CheckpointError:
            continue  # a damaged neighbor is not the origin
        if other.digest == wanted:
            return other
    return None


def is_checkpoint(folder: Path) -> bool:
    """Returns whether a folder contains a checkpoint, intact or not."""
    return (folder / DESCRIPTION).is_file()


def _checksum(raw: Mapping[str, Any]) -> str:
    return _json_digest({name: value for name, value in raw.items() if name != "checksum"})


def _json_digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
