"""What an interrupted training needs to continue, and its history."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from compress.checkpoint import HISTORY
from compress.files import read_checked, write_checked, write_text
from compress.log import say
from compress.train.precision import Precision

STATE = "training.pt"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A row of `history.jsonl`; accuracies are PyTorch's, a development aid."""

    epoch: int
    image_size: int
    lr: float
    """At the end of the epoch."""
    loss: float
    """Mean over the epoch's steps."""
    train_top1: float
    """Percent of the training images, as they passed: augmented, while the weights moved."""
    validation_loss: float
    validation_top1: float
    """Percent."""
    images_per_second: float
    seconds: float
    """Of training; scoring is left out."""
    precision: Precision


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    losses: Tensor,
    *,
    history: list[Epoch],
    best: dict[str, Tensor] | None,
    micro_batch: int,
) -> None:
    """Writes all that `restore` needs, and the history as lines for people and plots.

    The micro-batch is kept because with another one the last bits are others.
    """
    rows = [asdict(row) for row in history]
    packed = io.BytesIO()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.state_dict() if average is not None else None,
            "losses": losses,
            "history": rows,
            "best": best,
            "micro_batch": micro_batch,
        },
        packed,
    )
    write_checked(folder / STATE, packed.getvalue())
    write_text(folder / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))


def read_state(folder: Path) -> dict[str, Any] | None:
    """Returns what `save` wrote into a folder, None if there is nothing whole."""
    path = folder / STATE
    packed = read_checked(path)
    if packed is None:
        if path.is_file():
            say(f"  {path} is damaged: this training starts anew")
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(packed), weights_only=True, map_location="cpu")
    return state


def restore(
    state: dict[str, Any] | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    losses: Tensor,
) -> tuple[list[Epoch], dict[str, Tensor] | None]:
    """Puts a saved state back, in place.

    Returns:
        The epochs behind it, none if nothing was saved; and the best state so far, if one is kept.
    """
    if state is None:
        return [], None
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    losses.copy_(state["losses"])
    history = [Epoch(**row) for row in state["history"]]
    say(f"  continuing after epoch {len(history)}")
    return history, state["best"]
