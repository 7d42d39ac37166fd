"""Multiple processes (`torchrun -m compress ...`): the first runs the program, and all train.

The first process runs the command as if it were alone: it decides, writes, exports, measures and
prints. The others wait, idle, until it calls a function `everywhere`; then they make the same call
with the same arguments. Nothing is shared outside of such calls, so stages need not know the number
of processes except in training.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, and MASTER_PORT
(https://docs.pytorch.org/docs/stable/elastic/run.html). The run folder and the images must have the
same paths on all machines.
"""

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
"""Timeout for the next call; a dead process is noticed immediately by its closed connections."""
LOST = re.compile("gloo|nccl|closed by peer|reset by peer|broken pipe", re.IGNORECASE)
"""Matches torch's messages when another process is gone."""

ENDED = (
    "another process of the job ended, or torchrun was stopped; run the same command again to "
    "resume after the last finished epoch"
)
_together = False
"""Whether all processes are inside a call of `everywhere`."""


class LostProcessError(CompressError):
    """Another process of the job ended."""


@contextmanager
def joined() -> Iterator[None]:
    """Joins torchrun's job while the context is open; at the end the others are released."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=WAIT)
    try:
        yield
    finally:
        if dist.get_rank() == 0 and not _together:  # inside a call, they are not listening
            with suppress(RuntimeError):
                _broadcast(None)
        dist.destroy_process_group()


def is_first() -> bool:
    """Returns whether this process runs the program."""
    return not dist.is_initialized() or dist.get_rank() == 0


def process_name() -> str:
    """Returns this process's rank and host, for messages."""
    return f"process {dist.get_rank()} of {dist.get_world_size()} on {platform.node()}"


def serve() -> None:
    """Takes part in the first process's calls until released."""
    console.quiet = True
    sys.path.insert(0, str(Path.cwd()))  # for the user's own networks
    while True:
        try:
            call = _broadcast(None)
        except RuntimeError as error:
            raise LostProcessError("the first process ended") from error
        if call is None:
            return
        function, arguments, named, trusted = call
        set_trusted(trusted)
        _call(function, *arguments, **named)


def everywhere(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Calls a function in all processes with the same arguments.

    Args:
        function: a module-level function, as must be any among the arguments.
        arguments: pickled for the other processes, so in-place changes are not shared.
        named: keyword arguments, likewise pickled.

    Returns:
        The result in the first process.

    Raises:
        LostProcessError: another process ended.
    """
    if not dist.is_initialized():
        return function(*arguments, **named)
    try:
        _broadcast((function, arguments, named, is_trusted()))
        return _call(function, *arguments, **named)
    except RuntimeError as error:
        if LOST.search(str(error)):
            raise LostProcessError(ENDED) from error
        raise


def _call(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    global _together  # noqa: PLW0603 -- one state per process, as in torch.distributed
    assert not _together, "nested calls of everywhere"
    _together = True
    result = function(*arguments, **named)
    _together = False  # not after an error: the others may still be inside
    return result


def processes() -> int:
    """Returns the number of processes in the current call."""
    return dist.get_world_size() if _together else 1


def rank() -> int:
    """Returns this process's rank among `processes()`."""
    return dist.get_rank() if _together else 0


def all_processes() -> int:
    """Returns the number of processes of the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes_here() -> int:
    """Returns the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def device() -> torch.device:
    """Returns the device for PyTorch."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available() and not dist.is_initialized():  # gloo has no MPS
        return torch.device("mps")
    return torch.device("cpu")


def share(order: Tensor) -> Tensor:
    """Returns this process's part of an order; all parts have equal length, dropping the remainder.

    Consecutive batches of the parts form consecutive batches of the whole.
    """
    whole = len(order) - len(order) % processes()
    return order[:whole][rank() :: processes()]


def decide(function: Callable[[], T]) -> T:
    """Calls a function in the first process and returns its result in all of them."""
    if processes() == 1:
        return function()
    return _broadcast(function() if is_first() else None)  # type: ignore[no-any-return]


def minimum(value: int) -> int:
    """Returns the minimum over all processes."""
    return int(torch.stack(gathered(torch.tensor(value))).min())


def total(values: Tensor) -> Tensor:
    """Returns the sum over all processes."""
    if processes() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> list[Tensor]:
    """Returns the tensors of all processes, by rank; they have the same shape and dtype."""
    if processes() == 1:
        return [values]
    parts = [torch.empty_like(values) for _ in range(processes())]
    dist.all_gather(parts, values.contiguous())
    return parts


def wait_for_all() -> None:
    """Waits until all processes have reached this point."""
    if processes() > 1:
        dist.barrier()


def parallel(model: nn.Module) -> nn.Module:
    """Wraps the model to average its gradients over all processes."""
    if processes() == 1:
        return model
    ids = [device().index] if device().type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)


def _broadcast(value: Any) -> Any:
    """Sends the first process's value to all and returns it."""
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]
