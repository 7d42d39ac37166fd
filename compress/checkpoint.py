"""Checkpoints: a folder with tensors, a JSON description and a lineage; never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator, TypeAdapter

from compress.architectures.spec import ModelSpec
from compress.errors import CheckpointError
from compress.files import atomic_write, file_digest, parse_json, read_text, to_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 5
TENSORS, DESCRIPTION = "model.safetensors", "checkpoint.json"
MODEL_FILE = "model.onnx"
"""The network, as measured."""
FLOAT_FILE, INT8_FILE = "model-float.onnx", "model-int8.onnx"
"""What stage export writes in its place."""
REPORT_JSON, REPORT_MD, REPORT_HTML = "report.json", "report.md", "report.html"
HISTORY = "history.jsonl"
"""A row for each epoch of a stage that trained."""
IDENTITY = ("format", "spec", "shapes", "removed", "quantized", "tensors")
"""What two checkpoints of the same network have in common, whoever made them."""
STAGES = ("teacher", "distill", "prune", "quantize", "export")
"""In their order; a folder `2-prune` holds the stage at place 2."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


FileName = Annotated[str, PlainValidator(_text)]
"""May stand for bytes that are no UTF-8, as Python's names of files do; pydantic's own str not."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one stage did on the way to a checkpoint."""

    stage: str
    key: str
    """Hash of everything that decides the result; equal keys need no second run."""
    config: Mapping[str, Any]
    card: Mapping[str, Any] | None
    """The model card, where the networks came from one."""
    seed: Annotated[int, Field(ge=0)]
    parent: str | None
    """Digest of the checkpoint it started from."""
    data: FileName
    """The data set's name, as the user gave it."""
    data_config: Mapping[str, Any]
    data_fingerprint: str
    split_fingerprint: str
    """Which images were trained on; see `Data.split_fingerprint`."""
    measure: Mapping[str, int]
    """How latency was measured, where it decides the result; else empty."""
    environment: Mapping[str, str]
    """Library versions, threads and device: with others the same settings give other numbers."""


@dataclass(frozen=True, kw_only=True)
class QuantizedLayout:
    """Where the int8 network's quantized modules are; with it the same places are found again."""

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
    """Tensors of the float network whose shapes differ from the spec's: pruned ones."""
    removed: tuple[str, ...] = ()
    """Residual blocks of the float network that are left out."""
    quantized: QuantizedLayout | None = None
    """For an int8 network: its tensors are those of the modules placed over the float one."""
    lineage: tuple[Step, ...]
    tensors: str
    """SHA-256 of the tensors file."""
    checksum: str = ""
    """SHA-256 of all else in this file."""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise CheckpointError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")

    @property
    def step(self) -> Step:
        """What made it.

        Raises:
            CheckpointError: nothing says so.
        """
        if not self.lineage:
            raise CheckpointError(
                "the checkpoint does not say how it was made: its lineage is empty; take one that "
                "a stage made"
            )
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
        """The network it holds."""
        return self.description.spec

    @property
    def digest(self) -> str:
        """SHA-256 of all that it computes with: its identity.

        That is its tensors and how they are used: architecture, arguments, stem, activation, code
        of the user's, preprocessing, classes, widths and quantized layout; not how it was made.
        """
        facts = dataclasses.asdict(self.description)
        return _json_digest({name: facts[name] for name in IDENTITY})

    @property
    def key(self) -> str:
        """Key of the stage that made it."""
        return self.description.step.key


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], **facts: Any) -> Checkpoint:
    """Writes tensors and description into an existing folder.

    Args:
        folder: a folder that is not yet in its final place.
        tensors: the network's state.
        facts: fields of `Description` but its checksums.
    """
    from safetensors.torch import save_file

    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(folder / TENSORS) as partial:
        save_file(packed, partial)
    description = Description(tensors=file_digest(folder / TENSORS), **facts)
    checksum = _checksum(json.loads(to_json(description)))
    description = dataclasses.replace(description, checksum=checksum)
    write_json(folder / DESCRIPTION, description)
    return Checkpoint(folder=folder, description=description)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, truncated or of another format version.
    """
    path = folder / DESCRIPTION
    if not folder.exists():
        raise CheckpointError(f"{folder} is no checkpoint: there is no such folder")
    if not path.is_file():
        stages = sorted(found.parent.name for found in folder.glob(f"[0-9]-*/{DESCRIPTION}"))
        hint = f"; it is a run, take one of its stages: {', '.join(stages)}" if stages else ""
        raise CheckpointError(f"{folder} is no checkpoint: it has no {DESCRIPTION}{hint}")
    try:
        raw = parse_json(read_text(path))
        found = raw.get("format") if isinstance(raw, dict) else None
        other = isinstance(found, int) and found != FORMAT
        description = None if other else TypeAdapter(Description).validate_python(raw)
    except ValueError:  # CompressError and pydantic's own
        other, description = False, None
    if other:
        raise CheckpointError(
            f"{folder} has checkpoint format {found}, this program reads {FORMAT}; make it anew"
        )
    if description is None or description.checksum != _checksum(raw):
        raise CheckpointError(f"{path} is damaged or was edited; make the stage anew")
    tensors = folder / TENSORS
    if not tensors.is_file() or file_digest(tensors) != description.tensors:
        raise CheckpointError(
            f"{tensors} is missing, truncated or changed: its checksum differs from "
            f"{DESCRIPTION}; make the stage anew"
        )
    return Checkpoint(folder=folder, description=description)


def read_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the checkpoint's tensors, from the file's header alone.

    Raises:
        CheckpointError: they cannot be read.
    """
    from safetensors import safe_open

    with _readable(checkpoint.folder / TENSORS) as path, safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Returns the checkpoint's tensors by name, on the CPU.

    Raises:
        CheckpointError: they cannot be read.
    """
    from safetensors.torch import load_file

    with _readable(checkpoint.folder / TENSORS) as path:
        return load_file(path)


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Within, what safetensors says about a file is an error of the user's."""
    from safetensors import SafetensorError

    try:
        yield path
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); make the stage anew") from None


def require_stage(checkpoint: Checkpoint, allowed: tuple[str, ...], *, wanted_by: str) -> None:
    """Raises CheckpointError unless the checkpoint was made by one of the allowed stages."""
    if checkpoint.stage not in allowed:
        raise CheckpointError(
            f"{wanted_by} takes a checkpoint of the stage {' or '.join(allowed)}, "
            f"{checkpoint.folder} is of the stage {checkpoint.stage}"
        )


def _checksum(raw: Mapping[str, Any]) -> str:
    return _json_digest({name: value for name, value in raw.items() if name != "checksum"})


def _json_digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
