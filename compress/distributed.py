"""More than one process (`torchrun -m compress ...`): the first runs the program, all train.

The first process runs the command as if it were alone: it decides, writes, exports, measures and
prints. The others wait, without using a core, until it calls a function `everywhere`; then they
make the same call with the same arguments. Outside of such a call nothing is shared, so no stage
but for its training has to know how many processes there are.

Under torchrun the variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say who is
who (https://docs.pytorch.org/docs/stable/elastic/run.html). Run folder and images must have the
same paths on all machines.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compress.errors import CompressError
from compress.log import console
from compress.trust import is_trusted, set_trusted

P = ParamSpec("P")
T = TypeVar("T")

WAIT = timedelta(days=7)
"""For the next call; a process that dies is noticed at once, since its connections close."""
LOST = re.compile("gloo|nccl|closed by peer|reset by peer|broken pipe", re.IGNORECASE)
"""What torch says when another process is gone."""

ENDED = (
    "another process of the job ended, or torchrun was stopped; the same command continues after "
    "the last finished epoch"
)
_together = False
"""Whether all processes are in the same call now."""


class LostProcessError(CompressError):
    """Another process of the job ended."""


@contextmanager
def joined() -> Iterator[None]:
    """Within, this process belongs to torchrun's job; at the end the others are let go."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=WAIT)
    try:
        yield
    finally:
        if dist.get_rank() == 0 and not _together:  # in the middle of a call they cannot hear
            with suppress(RuntimeError):
                _broadcast(None)
        dist.destroy_process_group()


def is_first() -> bool:
    """Returns whether this process is the one that runs the program."""
    return not dist.is_initialized() or dist.get_rank() == 0


def process_name() -> str:
    """Returns this process's number among all and its host, for messages."""
    return f"process {dist.get_rank()} of {dist.get_world_size()} on {platform.node()}"


def serve() -> None:
    """Makes the first process's calls along with it until it lets go."""
    console.quiet = True
    sys.path.insert(0, str(Path.cwd()))  # where the user's networks are found
    while True:
        try:
            call = _broadcast(None)
        except RuntimeError as error:
            raise LostProcessError("the first process ended") from error
        if call is None:
            return
        function, arguments, named, trusted = call
        set_trusted(trusted)
        _in_step(function, *arguments, **named)


def everywhere(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Calls a function in all processes with the same arguments.

    Args:
        function: found by its name in its module, as are those among the arguments.
        arguments: its arguments; sent to the other processes, so it changes only this one's.
        named: likewise.

    Returns:
        What it returns in the first process.

    Raises:
        LostProcessError: another process ended.
    """
    if not dist.is_initialized():
        return function(*arguments, **named)
    try:
        _broadcast((function, arguments, named, is_trusted()))
        return _in_step(function, *arguments, **named)
    except RuntimeError as error:
        if LOST.search(str(error)):
            raise LostProcessError(ENDED) from error
        raise


def _in_step(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    global _together  # noqa: PLW0603 -- as torch.distributed itself, one state a process
    assert not _together, "a call everywhere inside of another"
    _together = True
    result = function(*arguments, **named)
    _together = False  # not after an error: then nobody knows where the others are
    return result


def processes() -> int:
    """Returns how many processes share the work of the present call."""
    return dist.get_world_size() if _together else 1


def place() -> int:
    """Returns this process's place among `processes()`."""
    return dist.get_rank() if _together else 0


def all_processes() -> int:
    """Returns how many processes the job has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes_here() -> int:
    """Returns how many processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def device() -> torch.device:
    """Returns where networks are trained, teachers run and images scored in PyTorch."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available() and not dist.is_initialized():  # gloo has no MPS
        return torch.device("mps")
    return torch.device("cpu")


def share(order: Tensor) -> Tensor:
    """Returns this process's part of an order, as long as everyone's; a few may be left over.

    Consecutive batches of the parts make up consecutive batches of the whole.
    """
    whole = len(order) - len(order) % processes()
    return order[:whole][place() :: processes()]


def decide(function: Callable[[], T]) -> T:
    """Returns what a function returns in the first process, in all of them."""
    if processes() == 1:
        return function()
    return _broadcast(function() if is_first() else None)  # type: ignore[no-any-return]


def decide_least(value: int) -> int:
    """Returns the least of all processes' values."""
    return int(torch.stack(gathered(torch.tensor(value))).min())


def total(values: Tensor) -> Tensor:
    """Returns the sum over all processes of tensors of one shape."""
    if processes() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> list[Tensor]:
    """Returns the tensors of all processes, of one shape and dtype, in the order of the places."""
    if processes() == 1:
        return [values]
    parts = [torch.empty_like(values) for _ in range(processes())]
    dist.all_gather(parts, values.contiguous())
    return parts


def wait_for_all() -> None:
    """Returns when all processes have come here."""
    if processes() > 1:
        dist.barrier()


def parallel(model: nn.Module) -> nn.Module:
    """Returns the model with gradients that are averaged over all processes."""
    if processes() == 1:
        return model
    ids = [device().index] if device().type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)


def _broadcast(value: Any) -> Any:
    """Sends the first process's value to all, and returns it."""
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]
