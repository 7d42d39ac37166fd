"""Forward hooks that observe the inputs and outputs of modules."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def watch_inputs(
    modules: Mapping[str, nn.Module], note: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Calls `note(name, input)` before each module runs, while the context is open."""
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(
                module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
            )
        yield


@contextmanager
def watch_outputs(
    modules: Mapping[str, nn.Module], note: Callable[[str, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Calls `note(name, inputs, output)` after each module has run, while the context is open."""
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(
                module.register_forward_hook(
                    lambda _, args, output, name=name: note(name, args, output)
                )
            )
        yield
