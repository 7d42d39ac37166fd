"""Resizes a newly built network to the shapes of a pruned one."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from compress.errors import CompressError


def differing_shapes(network: nn.Module, original: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of `network` that differ from those of `original`."""
    expected = {name: tensor.shape for name, tensor in original.state_dict().items()}
    return {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if tensor.shape != expected[name]
    }


def resize(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Cuts tensors to the given shapes, in place, and updates their layers.

    The first channels stay, so that a new network keeps its random weights.

    Raises:
        CompressError: there is no such tensor, or it cannot be reduced to that shape.
    """
    own = network.state_dict()
    for name, shape in shapes.items():
        old = own[name].shape if name in own else ()
        if len(shape) != len(old) or not all(
            0 < new <= size for new, size in zip(shape, old, strict=True)
        ):
            raise CompressError(f"{name} cannot be reduced from {tuple(old)} to {tuple(shape)}")
    for name, shape in shapes.items():
        kept = own[name][tuple(slice(size) for size in shape)]
        set_tensor(network, name, kept.clone())


def remove_blocks(network: nn.Module, names: Iterable[str]) -> None:
    """Replaces residual blocks with identities, in place.

    Raises:
        CompressError: the network has no block of that name.
    """
    for name in names:
        if not name or name not in dict(network.named_modules()):
            raise CompressError(f"the network has no block {name!r}")
        network.set_submodule(name, nn.Identity())


def set_tensor(network: nn.Module, name: str, value: Tensor) -> None:
    """Replaces a tensor with one of another shape, in place, and updates its layer."""
    path, _, attribute = name.rpartition(".")
    layer = network.get_submodule(path)
    old = getattr(layer, attribute)
    value = value.to(old.dtype)
    if isinstance(old, nn.Parameter):
        setattr(layer, attribute, nn.Parameter(value))
    else:
        layer.register_buffer(attribute, value)
    _update_widths(layer)


def _update_widths(layer: nn.Module) -> None:
    """Sets a layer's width attributes from the shapes of its tensors."""
    if isinstance(layer, nn.Conv2d):
        depthwise = layer.groups == layer.in_channels > 1
        layer.out_channels = layer.weight.shape[0]
        if depthwise:
            layer.groups = layer.out_channels
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(layer.weight)
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
