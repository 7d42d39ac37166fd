import torch
from torch import Tensor, nn

from compress.architectures.hooks import watch_inputs, watch_outputs


def test_modules_are_watched_inside_the_context_only() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    modules = dict(network.named_children())
    inputs: list[tuple[str, tuple[int, ...]]] = []
    outputs: list[tuple[str, tuple[int, ...]]] = []

    def note_output(name: str, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert len(args) == 1
        outputs.append((name, tuple(output.shape)))

    x = torch.zeros(3, 2, 2)
    with (
        watch_inputs(modules, lambda name, value: inputs.append((name, tuple(value.shape)))),
        watch_outputs(modules, note_output),
    ):
        network(x)
    network(x)
    assert inputs == [("0", (3, 2, 2)), ("1", (3, 4))]
    assert outputs == [("0", (3, 4)), ("1", (3, 2))]
