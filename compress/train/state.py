"""Training state, saved after each epoch so that an interrupted run can resume."""

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from compress.checkpoint import HISTORY
from compress.files import read_checked, write_checked, write_text
from compress.train.config import Precision

STATE = "training.pt"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A row of `history.jsonl`; accuracy is measured in PyTorch, for development only."""

    epoch: int
    """Epoch number, starting at 1."""
    image_size: int
    """Image side in pixels, in training and validation."""
    lr: float
    """Learning rate in the last step."""
    loss: float
    """Mean training loss over the steps."""
    train_top1: float
    """Top-1 on the augmented training images while training, in percent."""
    validation_loss: float
    validation_top1: float
    """Top-1 on the validation images, in percent."""
    images_per_second: float
    seconds: float
    """Training only, without validation."""
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """State that training changes, updated in place."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    losses: Tensor
    """float32 `[n_train]`, on the CPU: each image's most recent cross-entropy."""
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    """State dict of the best epoch, on the CPU; empty without early stopping."""

    @property
    def scored(self) -> nn.Module:
        """The network to validate and return: the EMA if there is one."""
        module = self.model if self.average is None else self.average.module
        assert isinstance(module, nn.Module)
        return module


def save(folder: Path, state: TrainState, *, micro_batch: int) -> None:
    """Writes the state, and the history as JSON lines.

    The micro-batch size is kept because the last bits of the results depend on it.
    """
    rows = [asdict(row) for row in state.history]
    packed = io.BytesIO()
    torch.save(
        {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "average": state.average.state_dict() if state.average is not None else None,
            "losses": state.losses,
            "history": rows,
            "best": state.best,
            "micro_batch": micro_batch,
        },
        packed,
    )
    write_checked(folder / STATE, packed.getvalue())
    write_text(folder / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))


def read_state(folder: Path) -> dict[str, Any] | None:
    """Reads what `save` wrote; None if it is missing or damaged."""
    packed = read_checked(folder / STATE)
    if packed is None:
        return None
    saved: dict[str, Any] = torch.load(io.BytesIO(packed), weights_only=True, map_location="cpu")
    return saved


def restore(saved: dict[str, Any], state: TrainState) -> None:
    """Loads a saved state into `state`, in place."""
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    if state.average is not None:
        state.average.load_state_dict(saved["average"])
    state.losses.copy_(saved["losses"])
    state.history.extend(Epoch(**row) for row in saved["history"])
    state.best.update(saved["best"])
